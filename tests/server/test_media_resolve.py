"""A reference becomes bytes, or an error that says how to send them instead."""

import base64

import pytest

from flamingo_server.errors import BadRequest, FlamingoError, Forbidden, TooLarge
from flamingo_server.media import MediaLimits, MediaReference, resolve

LIMITS = MediaLimits(max_media_bytes=1000)
BYTES = bytes(range(256)) + b"\xff"
BASE64 = base64.b64encode(BYTES).decode()


def from_url(url: str) -> bytes:
    return resolve(MediaReference(url=url), LIMITS)


def from_data(data: str) -> bytes:
    return resolve(MediaReference(data=data, media_type="image/png"), LIMITS)


def refusal(url: str | None = None, data: str | None = None) -> FlamingoError:
    with pytest.raises(FlamingoError) as caught:
        resolve(MediaReference(url=url, data=data), LIMITS, "prompt[2].image")
    assert caught.value.param == "prompt[2].image"
    return caught.value


def test_base64_data_is_decoded() -> None:
    assert from_data(BASE64) == BYTES


def test_line_breaks_and_blanks_in_base64_are_tolerated() -> None:
    lines = "\r\n ".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76))
    assert from_data(f"\t{lines}\n") == BYTES


@pytest.mark.parametrize(
    "head", ["image/png;base64", ";base64", "IMAGE/PNG;BASE64", "image/png;name=a;base64"]
)
def test_a_base64_data_url_is_decoded(head: str) -> None:
    assert from_url(f"data:{head},{BASE64}") == BYTES


def test_base64_in_a_data_url_may_be_percent_encoded() -> None:
    escaped = BASE64.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert from_url(f"DATA:image/png;base64,{escaped}") == BYTES


def test_a_percent_encoded_data_url_is_decoded() -> None:
    assert from_url("data:image/bmp," + "".join(f"%{byte:02X}" for byte in BYTES)) == BYTES
    assert from_url("data:,BM,plain") == b"BM,plain"


@pytest.mark.parametrize(
    "data",
    [
        "abc",
        "ab=c",
        "=abc",
        "abcd====",
        "abcd==",
        "QUJD*A==",
        "ab-_",
        "data:image/png;base64,QUJD",
        "QUJDé",
        "\ud800",
    ],
)
def test_base64_is_strict(data: str) -> None:
    error = refusal(data=data)
    assert isinstance(error, BadRequest) and error.code == "invalid_base64"


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:,%4", "data:,%zz", "data:,\ud800"])
def test_a_malformed_data_url_is_refused(url: str) -> None:
    error = refusal(url)
    assert isinstance(error, BadRequest) and error.code == "invalid_data_url"


@pytest.mark.parametrize(
    "url", ["https://a.example/cat.png", "http:a", " HTTPS://a", "hTTp://[::1]"]
)
def test_remote_urls_are_forbidden_and_the_way_out_is_told(url: str) -> None:
    error = refusal(url)
    assert isinstance(error, Forbidden) and error.code == "remote_media_forbidden"
    assert "off on this server" in error.message and "`data:` URL" in error.message


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "FILE:/etc/passwd", "/etc/passwd", "../cat.png", "cat.png", "~/cat.png"]
    + ["C:\\cat.png", "\\\\host\\cat.png", "//host/cat.png", "", BASE64],
)
def test_files_and_paths_are_forbidden(url: str) -> None:
    error = refusal(url)
    assert isinstance(error, Forbidden) and error.code == "file_media_forbidden"


@pytest.mark.parametrize("url", ["ftp://a/b", "javascript:alert(1)", "blob:x", "gopher:data:,x"])
def test_other_schemes_are_a_bad_request(url: str) -> None:
    error = refusal(url)
    assert isinstance(error, BadRequest) and error.code == "unknown_url_scheme"


def test_exactly_one_of_url_and_data_is_needed() -> None:
    assert refusal().code == "one_of_url_and_data"
    assert refusal("data:,x", "QUJD").code == "one_of_url_and_data"


@pytest.mark.parametrize("num_bytes", [998, 999, 1000])
def test_the_limit_itself_is_allowed(num_bytes: int) -> None:
    text = base64.b64encode(b"x" * num_bytes).decode()
    assert len(from_data(text + "\n" * 500)) == num_bytes
    assert len(from_url("data:," + "%78" * num_bytes)) == num_bytes


@pytest.mark.parametrize("num_bytes", [1001, 1002, 5000])
def test_one_byte_more_is_too_large(num_bytes: int) -> None:
    text = base64.b64encode(b"x" * num_bytes).decode()
    for error in (refusal(data=text), refusal("data:," + "x" * num_bytes)):
        assert isinstance(error, TooLarge) and error.code == "media_too_many_bytes"
        assert "1,000 bytes" in error.message


def test_size_is_judged_before_base64_is_decoded() -> None:
    assert refusal(data="*" * 2000).code == "media_too_many_bytes"


def test_sizes_are_told_in_mebibytes_and_never_look_equal_to_the_limit() -> None:
    with pytest.raises(TooLarge, match=r"is 20\.1 MiB; the limit is 20 MiB"):
        MediaLimits().check_bytes(20 * 2**20 + 1)

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from flamingo_client import example, image, text, video
from flamingo_client.parts import media_type, parts_from

PICTURE = Image.new("RGB", (2, 3), "red")


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, format=format)
    return buffer.getvalue()


PNG = encoded("PNG")
PNG_PART = {
    "type": "image",
    "image": {"data": base64.b64encode(PNG).decode(), "media_type": "image/png"},
}


def test_text_is_the_contracts_text_part() -> None:
    assert text("Output:") == {"type": "text", "text": "Output:"}


def test_special_tokens_are_sent_only_when_asked_for() -> None:
    assert text("<image>", special_tokens=True)["special_tokens"] is True
    assert "special_tokens" not in text("<image>", special_tokens=False)


def test_text_of_something_else_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"text\(\) takes a str, not int"):
        text(5)  # type: ignore[arg-type]


def test_an_image_from_bytes_is_the_contracts_image_part() -> None:
    assert image(PNG) == PNG_PART
    assert image(bytearray(PNG)) == PNG_PART


def test_an_image_is_read_from_a_path_or_its_name(tmp_path: Path) -> None:
    (tmp_path / "wrongly_named.jpg").write_bytes(PNG)
    assert image(tmp_path / "wrongly_named.jpg") == PNG_PART
    assert image(str(tmp_path / "wrongly_named.jpg")) == PNG_PART


def test_a_pil_image_is_sent_as_png_without_loss() -> None:
    sent = base64.b64decode(image(PICTURE)["image"]["data"])
    assert Image.open(io.BytesIO(sent)).tobytes() == PICTURE.tobytes()
    assert media_type(sent) == "image/png"


def test_a_data_url_is_decoded() -> None:
    assert image("data:image/png;base64," + base64.b64encode(PNG).decode()) == PNG_PART


def test_a_data_url_may_be_percent_encoded() -> None:
    escaped = base64.b64encode(PNG).decode().replace("+", "%2B").replace("/", "%2F")
    assert image("data:image/png;base64," + escaped) == PNG_PART
    assert image("DATA:image/png," + "".join(f"%{byte:02x}" for byte in PNG)) == PNG_PART


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_the_media_type_comes_from_the_bytes(format: str) -> None:
    assert image(encoded(format))["image"]["media_type"] == f"image/{format.lower()}"


def test_the_bytes_win_over_the_type_a_data_url_claims() -> None:
    claimed = "data:image/jpeg;base64," + base64.b64encode(PNG).decode()
    assert image(claimed)["image"]["media_type"] == "image/png"


@pytest.mark.parametrize("content", [b"", b"BM not wanted", b"RIFF\0\0\0\0WAVE"])
def test_bytes_of_another_kind_are_a_clear_error(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a PNG, JPEG, WebP or GIF"):
        image(content)


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,a*b"])
def test_a_broken_data_url_is_a_clear_error(url: str) -> None:
    with pytest.raises(ValueError, match="data URL"):
        image(url)


def test_a_web_address_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="fetches nothing"):
        image("https://example.com/cat.png")


def test_an_object_of_another_kind_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="a PIL image, not list"):
        image([1, 2])  # type: ignore[arg-type]


def test_a_picture_png_cannot_hold_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="convert the picture to RGB"):
        image(Image.new("CMYK", (1, 1)))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image(tmp_path / "nothing.png")


def test_strings_in_a_prompt_become_text_parts_in_order() -> None:
    assert parts_from("hi") == [text("hi")]
    assert parts_from([image(PNG), "what?"]) == [PNG_PART, text("what?")]


def test_a_lone_part_is_not_a_prompt() -> None:
    with pytest.raises(ValueError, match="into a list"):
        parts_from(text("hi"))  # type: ignore[arg-type]


MP4, WEBM = b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3\0"


@pytest.mark.parametrize(
    ("content", "kind"),
    [(MP4, "video/mp4"), (WEBM, "video/webm"), (encoded("GIF"), "image/gif")],
)
def test_a_film_is_the_contracts_video_part(tmp_path: Path, content: bytes, kind: str) -> None:
    source = {"data": base64.b64encode(content).decode(), "media_type": kind}
    (tmp_path / "film").write_bytes(content)
    assert video(content) == {"type": "video", "video": source}
    wanted = {"type": "video", "video": source, "fps": 2.0, "max_frames": 4}
    assert video(tmp_path / "film", fps=2.0, max_frames=4) == wanted


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"text", "not an MP4, MOV, WebM, GIF or WebP"),
        ("https://example.com/a.mp4", r"video\(\) fetches nothing"),
        (PICTURE, r"video\(\) takes a path, bytes, or a data URL, not Image"),
    ],
)
def test_what_is_no_film_is_a_clear_error(source: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        video(source)  # type: ignore[arg-type]


def test_a_film_is_no_picture() -> None:
    with pytest.raises(ValueError, match="not a PNG, JPEG, WebP or GIF"):
        image(MP4)


def test_an_example_is_its_media_and_its_fields() -> None:
    assert example(image(PNG), label="cat") == {"image": PNG_PART["image"], "label": "cat"}
    assert example(video(MP4, fps=2.0)).keys() == {"video", "fps"}
    assert example(caption="A cat.") == {"caption": "A cat."}

"""A media reference → encoded bytes. Opens no file and no socket, and decodes no picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import pybase64

from flamingo_server.errors import BadRequest, Forbidden, naming
from flamingo_server.media.limits import MediaLimits

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):")  # two letters or more: "C:" is a path
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOW_TO_SEND = "Send the bytes themselves, as base64 in `data` or as a `data:` URL."


@dataclass(frozen=True)
class MediaReference:
    """Where a picture's bytes are: a `data:` URL or base64 `data`, one of the two.

    `media_type` is the client's claim; the bytes alone decide what the picture is.
    """

    url: str | None = None
    data: str | None = None
    media_type: str | None = None


def resolve(reference: MediaReference, limits: MediaLimits, param: str | None = None) -> bytes:
    """The encoded file, at most `limits.max_media_bytes` of it; never looks into it.

    Raises:
        BadRequest: both or none of `url` and `data`, an unknown scheme, bad base64 or escapes.
        Forbidden: an `http(s):` or `file:` URL, or a path.
        TooLarge: over the limit, judged from the text's length before it is decoded.
    """
    with naming(param):
        data = _read(reference, limits)
        limits.check_bytes(len(data))
        return data


def _read(reference: MediaReference, limits: MediaLimits) -> bytes:
    if reference.url is not None and reference.data is None:
        return _from_url(reference.url, limits)
    if reference.data is not None and reference.url is None:
        return _from_base64(reference.data, limits)
    raise BadRequest("Give exactly one of `url` and `data`.", code="one_of_url_and_data")


def _from_url(url: str, limits: MediaLimits) -> bytes:
    match = _SCHEME.match(url)
    scheme = match.group(1).lower() if match else "file"
    if match and scheme == "data":
        return _from_data_url(url[match.end() :], limits)
    if scheme in ("http", "https"):
        message = f"Fetching remote media is off on this server. {_HOW_TO_SEND}"
        raise Forbidden(message, code="remote_media_forbidden")
    if scheme == "file":
        message = f"This server never reads files by path. {_HOW_TO_SEND}"
        raise Forbidden(message, code="file_media_forbidden")
    message = f"`{scheme[:20]}:` is not a URL scheme for media. {_HOW_TO_SEND}"
    raise BadRequest(message, code="unknown_url_scheme")


def _from_data_url(rest: str, limits: MediaLimits) -> bytes:
    """RFC 2397 after `data:`, i.e. `[media type][;base64],payload`."""
    head, comma, payload = rest.partition(",")
    if not comma:
        message = "A `data:` URL needs a comma before its bytes: data:image/png;base64,iVBOR..."
        raise BadRequest(message, code="invalid_data_url")
    if head.rstrip().lower().endswith(";base64"):
        return _from_base64(payload, limits)
    limits.check_bytes(_num_unescaped(payload))
    return _unescape(payload)


def _from_base64(text: str, limits: MediaLimits) -> bytes:
    if len(text) * 3 // 4 > limits.max_media_bytes:
        limits.check_bytes(_num_decoded(text))
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:  # a line may be broken, a sign escaped: rare, so looked for only now
        return _decoded(_unescape(text).decode("latin-1") if "%" in text else text)


def _decoded(text: str) -> bytes:
    try:
        return pybase64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise _invalid_base64() from None


def _invalid_base64() -> BadRequest:
    message = (
        "The base64 is not valid: use the standard alphabet (A-Z a-z 0-9 + /) with its "
        "`=` padding, and only the bytes, without a `data:` prefix."
    )
    return BadRequest(message, code="invalid_base64")


def _unescape(text: str) -> bytes:
    if _BAD_ESCAPE.search(text) or not text.isascii():
        message = "The `data:` URL has a bad percent escape: write %25 for a lone percent sign."
        raise BadRequest(message, code="invalid_data_url")
    return unquote_to_bytes(text)


def _num_unescaped(text: str) -> int:
    return len(text) - 2 * text.count("%")


def _num_decoded(text: str) -> int:
    """Bytes that the base64 holds at least, without decoding it; padding makes it two fewer."""
    num_blank = sum(text.count(blank) for blank in " \t\r\n")
    return (_num_unescaped(text) - num_blank) * 3 // 4 - 2

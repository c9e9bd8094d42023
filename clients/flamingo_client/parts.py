"""Makes the parts of a prompt. The order of the parts is the order in which the model sees them."""

import base64
import binascii
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NotRequired, Protocol, TypeAlias, TypedDict, runtime_checkable
from urllib.parse import unquote_to_bytes


class TextPart(TypedDict):
    """Text. Markers such as `<image>` are plain text unless `special_tokens` is true."""

    type: Literal["text"]
    text: str
    special_tokens: NotRequired[bool]


class MediaSource(TypedDict, total=False):
    """Where the bytes are: exactly one of `data` (base64), `url` and `id` (uploaded before)."""

    data: str
    media_type: str
    url: str
    id: str


class ImagePart(TypedDict):
    """A picture."""

    type: Literal["image"]
    image: MediaSource


class VideoPart(TypedDict):
    """A film, sampled at `fps` frames a second, at most `max_frames` of them."""

    type: Literal["video"]
    video: MediaSource
    fps: NotRequired[float]
    max_frames: NotRequired[int]


Part: TypeAlias = TextPart | ImagePart | VideoPart
Prompt: TypeAlias = str | Sequence[Part | str]


@runtime_checkable
class SavesItself(Protocol):
    """What the client needs of a PIL image."""

    def save(self, fp: IO[bytes], /, format: str) -> object: ...


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | SavesItself


def text(text: str, special_tokens: bool = False) -> TextPart:
    """A text part; with `special_tokens` the model's own markers in it keep their meaning.

    Raises ValueError if `text` is not a str.
    """
    if not isinstance(text, str):
        raise ValueError(f"text() takes a str, not {type(text).__name__}")
    if special_tokens:
        return {"type": "text", "text": text, "special_tokens": True}
    return {"type": "text", "text": text}


def image(source: ImageSource) -> ImagePart:
    """An image part from a path, the bytes of a file, a data URL or a PIL image (sent as PNG).

    Raises ValueError if that is no PNG, JPEG, WebP or GIF, and OSError if the path can't be read.
    """
    content = _content(source)
    data = base64.b64encode(content).decode("ascii")
    return {"type": "image", "image": {"data": data, "media_type": media_type(content)}}


def parts_from(prompt: Prompt) -> list[Part]:
    """The parts of a prompt, strings made text parts. Raises ValueError if it is neither."""
    if isinstance(prompt, str):
        return [text(prompt)]
    if isinstance(prompt, Mapping):
        raise ValueError("a prompt is a str or a list of parts: put this part into a list")
    return [text(part) if isinstance(part, str) else part for part in prompt]


def media_type(content: bytes) -> str:
    """The media type that the first bytes show. Raises ValueError if they show none we know."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    raise ValueError(f"not a PNG, JPEG, WebP or GIF: the bytes begin with {content[:12]!r}")


def _content(source: ImageSource) -> bytes:
    if isinstance(source, bytes | bytearray):
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode_data_url(source)
    if isinstance(source, str | os.PathLike):
        return _read_file(source)
    if isinstance(source, SavesItself):
        return _save_as_png(source)
    kind = type(source).__name__
    raise ValueError(f"image() takes a path, bytes, a data URL or a PIL image, not {kind}")


def _read_file(path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and path.lower().startswith(("http://", "https://")):
        raise ValueError(
            "image() fetches nothing: download the picture, or let the server fetch it with the "
            'part {"type": "image", "image": {"url": ...}}'
        )
    return Path(path).read_bytes()


def _decode_data_url(url: str) -> bytes:
    header, comma, data = url.partition(",")
    if not comma:
        raise ValueError("a data URL needs a comma before its data")
    content = unquote_to_bytes(data)
    if not header.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the data URL is not base64: {error}") from error


def _save_as_png(picture: SavesItself) -> bytes:
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format="PNG")
    except OSError as error:
        raise ValueError(f"{error}: convert the picture to RGB first") from error
    return buffer.getvalue()

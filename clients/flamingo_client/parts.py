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


Shot: TypeAlias = Mapping[str, object]
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
    content = _content(source, "image")
    data = base64.b64encode(content).decode("ascii")
    return {"type": "image", "image": {"data": data, "media_type": media_type(content)}}


def video(
    source: str | os.PathLike[str] | bytes | bytearray,
    fps: float | None = None,
    max_frames: int | None = None,
) -> VideoPart:
    """A video part from a path, the bytes of a file or a data URL: a film or an animation.

    Raises ValueError if that is no MP4, MOV, WebM, Matroska, GIF, WebP or PNG, and OSError if the
    path can't be read. Without `fps` and `max_frames` the server takes 1 a second, at most 8.
    """
    content = _content(source, "video")
    data = base64.b64encode(content).decode("ascii")
    part: VideoPart = {
        "type": "video",
        "video": {"data": data, "media_type": film_type(content)},
    }
    if fps is not None:
        part["fps"] = fps
    if max_frames is not None:
        part["max_frames"] = max_frames
    return part


def example(media: ImagePart | VideoPart | None = None, /, **fields: object) -> Shot:
    """An example of a task, or its query: a picture or a film, and the task's fields."""
    sent = {name: value for name, value in (media or {}).items() if name != "type"}
    return {**sent, **fields}


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


def film_type(content: bytes) -> str:
    """`media_type` for films: the container decides. Raises ValueError for one not known."""
    if content[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "video/mp4"
    if content.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm"
    try:
        return media_type(content)
    except ValueError:
        begin = content[:12]
        message = f"not an MP4, MOV, WebM, GIF or WebP: the bytes begin with {begin!r}"
        raise ValueError(message) from None


def _content(source: ImageSource, maker: str) -> bytes:
    if isinstance(source, bytes | bytearray):
        return bytes(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return _decode_data_url(source)
    if isinstance(source, str | os.PathLike):
        return _read_file(source, maker)
    if isinstance(source, SavesItself) and maker == "image":
        return _save_as_png(source)
    kind = type(source).__name__
    known = "a data URL or a PIL image" if maker == "image" else "or a data URL"
    raise ValueError(f"{maker}() takes a path, bytes, {known}, not {kind}")


def _read_file(path: str | os.PathLike[str], maker: str) -> bytes:
    if isinstance(path, str) and path.lower().startswith(("http://", "https://")):
        raise ValueError(
            f"{maker}() fetches nothing: download the file, or let the server fetch it with the "
            f'part {{"type": "{maker}", "{maker}": {{"url": ...}}}}'
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

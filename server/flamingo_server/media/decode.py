"""Encoded bytes → pixels, inside a worker process. Everything here meets a stranger's bytes.

The parent process imports this file to name its functions, and never calls them.
"""

from __future__ import annotations

import io
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from flamingo_model.film import (
    DamagedFilm,
    Film,
    FilmError,
    FilmOptions,
    FilmsUnavailable,
    FilmTooLarge,
    NotAFilm,
    is_video,
    not_a_film,
    read_animation,
    read_frames,
)
from flamingo_model.media import Transform, media_digest, to_pixels, upright_size
from flamingo_server.errors import (
    BadRequest,
    EngineFailure,
    FlamingoError,
    TooLarge,
    UnsupportedMedia,
    naming,
)
from flamingo_server.media.headers import count_gif_frames, webp_size
from flamingo_server.media.limits import TOO_LARGE, MediaLimits
from flamingo_server.memory import limit_memory

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SIGNATURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM.{4}\0{4}", re.DOTALL
)
_TRUNCATED = {"picture": "truncated_image", "film": "truncated_film"}
_REFUSALS: dict[type[FilmError], tuple[type[FlamingoError], str]] = {
    FilmTooLarge: (TooLarge, "film_too_large"),
    DamagedFilm: (BadRequest, "truncated_film"),
    FilmsUnavailable: (UnsupportedMedia, "films_unavailable"),
    NotAFilm: (UnsupportedMedia, "not_a_film"),
}


@dataclass(frozen=True, eq=False)
class DecodedMedia:
    """One picture or film as the network takes it.

    `pixels` is uint8 [size, size, 3], or [T, size, size, 3] of a film, read-only from the pool;
    `digest` is `media_digest` of them, so that a film's says nothing of its times; `width` and
    `height` are the sender's, upright, in pixels; `format` is one of `FORMATS`, or MP4 or WEBM
    (which stand for MOV and Matroska too).

    Of a film, `duration` is seconds, `times` when each of the T frames comes on view, and
    `num_frames` how many the file has.
    """

    pixels: NDArray[np.uint8]
    digest: str
    width: int
    height: int
    format: str
    duration: float = 0.0
    times: tuple[float, ...] = ()
    num_frames: int = 1


def start_worker(memory_bytes: int) -> None:
    """Prepares a fresh worker: load the decoders, then bound the memory they may take."""
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    assert BmpImagePlugin and GifImagePlugin and JpegImagePlugin and PngImagePlugin
    assert WebPImagePlugin  # without it, the first WebP would load every decoder Pillow has
    Image.MAX_IMAGE_PIXELS = None  # this process has its own limit, see `_open`
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler would wait for the decoder's C code
    limit_memory(memory_bytes)


def decode_picture(
    data: bytes, transform: Transform, limits: MediaLimits, param: str | None = None
) -> DecodedMedia:
    """Pixels of the file's first frame.

    Raises:
        UnsupportedMedia: not one of `FORMATS`.
        TooLarge: too many pixels or frames, both read from headers; or out of memory.
        BadRequest: one of the formats, but cut off or damaged.
        EngineFailure: a mistake of ours.
    """
    with _errors_of_ours(param, "picture"):
        return _decode(data, transform, limits)


def decode_film(
    data: bytes,
    transform: Transform,
    limits: MediaLimits,
    options: FilmOptions,
    param: str | None = None,
) -> DecodedMedia:
    """Pixels of the wanted frames of a video, an animation, or a still picture: that one frame.

    Raises:
        UnsupportedMedia: no video this server reads, none of `FORMATS`, or sound alone.
        TooLarge: too many seconds, pixels or frames, read from headers; or out of memory.
        BadRequest: a film, but cut off or damaged.
        EngineFailure: a mistake of ours.
    """
    with _errors_of_ours(param, "film"):
        limits.check_film(options)
        film = _read_film(data, transform, limits, options)
        return DecodedMedia(
            pixels=film.pixels,
            digest=media_digest(film.pixels, transform),
            width=film.width,
            height=film.height,
            format=film.format,
            duration=film.duration,
            times=film.times,
            num_frames=film.num_frames,
        )


@contextmanager
def _errors_of_ours(param: str | None, noun: str) -> Iterator[None]:
    with naming(param), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no news for the operator
        try:
            yield
        except MemoryError:
            message = f"The {noun} needs more memory to decode than allowed. Scale it down."
            raise TooLarge(message, code=TOO_LARGE[noun]) from None
        except FlamingoError:
            raise
        except FilmError as error:
            raise _refused(error) from None
        except Exception as error:
            message = f"The server failed to decode the {noun}."
            raise EngineFailure(message, code="decoder_failed") from error


def _refused(error: FilmError) -> FlamingoError:
    kind, code = next(answer for cls, answer in _REFUSALS.items() if isinstance(error, cls))
    return kind(str(error), code=code)


def _read_film(
    data: bytes, transform: Transform, limits: MediaLimits, options: FilmOptions
) -> Film:
    if is_video(data):
        return read_frames(data, transform, options, limits.of_video())
    if not _SIGNATURE.match(data):
        raise not_a_film()
    with _open(data, limits, "film") as picture:
        animation = limits.of_animation()
        animation.check_pixels(*picture.size)
        animation.check_frames(_num_frames(picture, data, limits))
        return replace(
            read_animation(picture, transform, options, animation), format=_format(picture)
        )


def _decode(data: bytes, transform: Transform, limits: MediaLimits) -> DecodedMedia:
    with _open(data, limits) as picture:
        limits.check_pixels(*picture.size)
        limits.check_frames(_num_frames(picture, data, limits))
        _load(picture)
        pixels = to_pixels(picture, transform)  # [size, size, 3]
        digest = media_digest(pixels, transform)
        return DecodedMedia(pixels, digest, *upright_size(picture), _format(picture))


def _open(data: bytes, limits: MediaLimits, noun: str = "picture") -> Image.Image:
    """Reads the header. Pillow's own text stays here: it may carry addresses of this process."""
    if size := webp_size(data):
        limits.check_pixels(*size, noun)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        message = f"The {noun} has more than {limits.max_pixels:,} pixels. Scale it down."
        raise TooLarge(message, code=TOO_LARGE[noun]) from None
    except UnidentifiedImageError:
        raise (_damaged(noun) if _SIGNATURE.match(data) else _not_a_picture()) from None
    except Exception:
        raise _damaged(noun) from None


def _load(picture: Image.Image) -> None:
    try:
        picture.load()
    except MemoryError:
        raise
    except Exception:
        raise _damaged() from None


def _num_frames(picture: Image.Image, data: bytes, limits: MediaLimits) -> int:
    if picture.format == "GIF":
        return count_gif_frames(data, stop_after=limits.max_frames)
    return getattr(picture, "n_frames", 1)


def _format(picture: Image.Image) -> str:
    """Pillow calls a JPEG with a preview or a second view in it MPO."""
    return "JPEG" if picture.format == "MPO" else str(picture.format)


def _not_a_picture() -> UnsupportedMedia:
    message = f"The bytes are not a picture this server reads: send one of {', '.join(FORMATS)}."
    return UnsupportedMedia(message, code="not_a_picture")


def _damaged(noun: str = "picture") -> BadRequest:
    message = (
        f"The {noun} is cut off or damaged: check that the whole file was sent, or save it again."
    )
    return BadRequest(message, code=_TRUNCATED[noun])

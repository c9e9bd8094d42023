"""Film → frames: which ones, and the pixels of those. Animations here, video in video.py.

Knows numpy and Pillow, as media.py does; PyAV is imported with the first video only, so that a
server without it still reads pictures and animations. Errors are this file's own; messages are
for whoever sent the film.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flamingo_model.media import Transform, to_pixels, upright_size

ANIMATIONS = ("GIF", "WEBP", "PNG")
_SHORTEST_MS = 10  # browsers show frames this short, or shorter, for a tenth of a second


class FilmError(ValueError):
    """No frames can be had from the bytes; see the four below for why."""


class NotAFilm(FilmError):
    """Not a film of a kind read here, or nothing moving in it."""


class DamagedFilm(FilmError):
    """Cut off, or broken inside."""


class FilmTooLarge(FilmError):
    """Longer, larger or of more frames than `FilmLimits` allow."""


class FilmsUnavailable(FilmError):
    """PyAV is not installed."""


@dataclass(frozen=True)
class FilmOptions:
    """Which frames are wanted.

    `rate`: what a viewer sees at 0, 1 / fps, 2 / fps, … seconds; where those are more than
    `max_frames`, that many moments spread evenly over the whole film. A frame on view at two
    moments comes twice. `uniform`: every n-th frame with n = frames // max_frames, as Otter does;
    all of them where there are fewer.

    Raises:
        ValueError: an unknown `sampling`, `fps` not above 0, or `max_frames` below 1.
    """

    fps: float = 1.0
    max_frames: int = 16
    sampling: Literal["rate", "uniform"] = "rate"

    def __post_init__(self) -> None:
        if self.sampling not in ("rate", "uniform"):
            raise ValueError(f"sampling is 'rate' or 'uniform', not {self.sampling!r}")
        if not 0 < self.fps < math.inf or self.max_frames < 1:
            raise ValueError(f"fps must be above 0 and max_frames at least 1: {self}")


@dataclass(frozen=True)
class FilmLimits:
    """Ceilings for the file as it is, whatever is wanted of it; checked before frames are decoded.

    `max_pixels` is width × height of a frame, `max_frames` all frames in the file.
    """

    max_seconds: float = 600.0
    max_pixels: int = 50_000_000
    max_frames: int = 100_000

    def check_seconds(self, seconds: float | Fraction) -> None:
        if seconds > self.max_seconds:
            actual, limit = f"{float(seconds):,.1f} s", f"{self.max_seconds:,g} s"
            raise FilmTooLarge(f"The film runs {actual}; the limit is {limit}. Send a part of it.")

    def check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise FilmTooLarge(
                f"The film is {width:,} x {height:,} = {width * height:,} pixels; "
                f"the limit is {self.max_pixels:,} pixels. Scale it down before sending."
            )

    def check_frames(self, num_frames: int) -> None:
        if num_frames > self.max_frames:
            raise FilmTooLarge(
                f"The film has {num_frames:,} frames or more; the limit is {self.max_frames:,}. "
                "Send a part of it, or lower its frame rate."
            )


@dataclass(frozen=True, eq=False)
class Film:
    """The frames taken from a film, and the facts about all of it.

    `pixels` is uint8 [T, size, size, 3]; `times` are T moments in seconds at which the frames come
    on view, the film's first at 0. `width` and `height` are the sender's, as a viewer shows them.
    `num_decoded` counts the frames that were decoded to get these.
    """

    pixels: NDArray[np.uint8]
    times: tuple[float, ...]
    duration: float
    width: int
    height: int
    num_frames: int
    num_decoded: int
    format: str


def read_frames(
    data: bytes, transform: Transform, options: FilmOptions, limits: FilmLimits | None = None
) -> Film:
    """Frames of an MP4, MOV, WebM, Matroska, or an animated GIF, WebP or PNG.

    Raises:
        NotAFilm: another format, an unknown codec, or sound alone.
        DamagedFilm: cut off, or broken inside.
        FilmTooLarge: over one of the `limits`.
        FilmsUnavailable: a video, and PyAV is not installed.
    """
    if is_video(data):
        return _read_video(data, transform, options, limits or FilmLimits())
    try:
        picture = Image.open(BytesIO(data), formats=ANIMATIONS)
    except Image.DecompressionBombError:
        raise FilmTooLarge("The animation has too many pixels. Scale it down.") from None
    except (OSError, SyntaxError, ValueError):
        raise not_a_film() from None
    with picture:
        return read_animation(picture, transform, options, limits)


def is_video(data: bytes) -> bool:
    """Whether the first bytes are those of a video container; an animation is none."""
    return video_container(data) is not None


def video_container(data: bytes) -> Literal["mov", "matroska"] | None:
    """The demuxer for the bytes. None of the others is ever tried: some open further files."""
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    boxes = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    return "mov" if data[4:8] in boxes else None


def pick(
    starts: Sequence[Fraction], end: Fraction, options: FilmOptions, tick: Fraction = Fraction(0)
) -> list[int]:
    """Places in `starts` of the frames wanted, in order; `starts` are ascending seconds from 0.

    `tick` is the clock that the starts were rounded to. A frame counts as on view half a tick
    early, or frame 20 of 30 a second, at 0.667 in WebM, would be missing at two thirds.
    """
    if options.sampling == "uniform":
        step = max(1, len(starts) // options.max_frames)
        return list(range(0, len(starts), step))[: options.max_frames]
    step_s = 1 / Fraction(repr(options.fps))
    num_moments = max(1, math.ceil(end / step_s))
    if num_moments > options.max_frames:
        num_moments, step_s = options.max_frames, end / options.max_frames
    moments = (num * step_s + tick / 2 for num in range(num_moments))
    return [bisect_right(starts, moment) - 1 for moment in moments]


def read_animation(
    picture: Image.Image,
    transform: Transform,
    options: FilmOptions,
    limits: FilmLimits | None = None,
) -> Film:
    """Frames of a picture Pillow has opened. A still one is a film of one frame, of no duration.

    Decodes twice: how long frames stay is known only once each was on.

    Raises:
        DamagedFilm, FilmTooLarge: as `read_frames`.
    """
    limits = limits or FilmLimits()
    limits.check_pixels(*picture.size)
    num_frames = _num_frames(picture)
    limits.check_frames(num_frames)
    starts, end = [Fraction(0)], Fraction(0)
    for frame in _frames(picture, num_frames):
        end += _seconds(frame) if num_frames > 1 else 0
        starts.append(end)
        limits.check_seconds(end)
    picked = pick(starts[:-1], end, options)
    wanted = set(picked)
    squares = {
        at: to_pixels(frame, transform)
        for at, frame in enumerate(_frames(picture, picked[-1] + 1))
        if at in wanted
    }
    return Film(
        pixels=np.stack([squares[at] for at in picked]),
        times=tuple(float(starts[at]) for at in picked),
        duration=float(end),
        width=upright_size(picture)[0],
        height=upright_size(picture)[1],
        num_frames=num_frames,
        num_decoded=num_frames + picked[-1] + 1,
        format=str(picture.format),
    )


def not_a_film() -> NotAFilm:
    return NotAFilm(
        "The bytes are not a film this server reads: send MP4, MOV, WebM or Matroska, "
        "or an animated GIF, WebP or PNG."
    )


def damaged() -> DamagedFilm:
    return DamagedFilm(
        "The film is cut off or damaged: check that the whole file was sent, or save it again."
    )


def _read_video(
    data: bytes, transform: Transform, options: FilmOptions, limits: FilmLimits
) -> Film:
    try:
        from flamingo_model import video
    except ImportError:
        message = "This server reads no video (its `av` package is missing): send single pictures."
        raise FilmsUnavailable(message) from None
    return video.read_video(data, transform, options, limits)


def _num_frames(picture: Image.Image) -> int:
    try:
        return getattr(picture, "n_frames", 1)
    except MemoryError:
        raise
    except Exception:  # Pillow has many names for damage, and no one list of them
        raise damaged() from None


def _frames(picture: Image.Image, num_frames: int) -> Iterator[Image.Image]:
    for at in range(num_frames):
        try:
            picture.seek(at)
            picture.load()
        except MemoryError:
            raise
        except Exception:
            raise damaged() from None
        yield picture


def _seconds(frame: Image.Image) -> Fraction:
    duration = Fraction(frame.info.get("duration", 0))
    return (duration if duration > _SHORTEST_MS else Fraction(100)) / 1000

"""Encoded pictures and films → pixels, refusing what would cost too much. Bytes are a stranger's.

Pictures are read as `flamingo_server.media.decode` reads a client's: five formats and no others,
the size taken from the header before anything is decoded, the first frame of an animation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...film import Film, FilmError, FilmLimits, FilmOptions, read_frames
from ...media import Transform, to_pixels
from .document import MediaPart
from .problems import Problem

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
LIMITS = FilmLimits()
MAX_DECODED = 600 * 30 * 1280 * 720  # pixels of a film's frames


def frames(
    part: MediaPart, transform: Transform, options: FilmOptions, limits: FilmLimits = LIMITS
) -> NDArray[np.uint8]:
    """uint8 [T, size, size, 3], T = 1 for a picture. Raises Problem, and nothing else."""
    with decoding():
        if part.kind == "video":
            return read_film(part.data, transform, options, limits).pixels
        with open_picture(part.data, limits) as picture:
            return to_pixels(picture, transform)[None]


def read_film(
    data: bytes,
    transform: Transform,
    options: FilmOptions,
    limits: FilmLimits = LIMITS,
    max_decoded: int = MAX_DECODED,
) -> Film:
    """`read_frames`, and Problem where over `max_decoded` pixels would be decoded for the frames.

    Within the limits a film may still take hours, and here no clock can stop it: a film with few
    key frames is decoded nearly whole. Counted, not timed, each run leaves out the same films.
    Within `decoding`.
    """
    budget = FilmBudget(limits.max_seconds, limits.max_pixels, limits.max_frames, max_decoded)
    return read_frames(data, transform, options, budget)


@dataclass
class Decoded:
    """Pixels: of a frame as last announced, and of all frames so far."""

    frame: int = 0
    total: int = 0


@dataclass(frozen=True)
class FilmBudget(FilmLimits):
    """For one film. Readers check the pixels of each frame of a video, and an animation's seconds
    behind each frame; so these count what is decoded."""

    max_decoded: int = MAX_DECODED
    decoded: Decoded = field(default_factory=Decoded)

    def check_pixels(self, width: int, height: int) -> None:
        super().check_pixels(width, height)
        self.decoded.frame = width * height
        self.spend()

    def check_seconds(self, seconds: float | Fraction) -> None:
        super().check_seconds(seconds)
        self.spend()

    def spend(self) -> None:
        self.decoded.total += self.decoded.frame
        if self.decoded.total > self.max_decoded:
            raise Problem(
                f"its frames would take more than {self.max_decoded:,} pixels to decode: "
                "make the film smaller or shorter, or give it more key frames"
            )


def open_picture(data: bytes, limits: FilmLimits = LIMITS) -> Image.Image:
    """A picture's first frame, decoded, in its own mode; to be closed. Within `decoding`."""
    try:
        picture = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Problem(f"no picture (of {', '.join(FORMATS)}), or cut off at its start") from None
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise Problem(f"{width:,} x {height:,} is over {limits.max_pixels:,} pixels")
    picture.load()
    return picture


@contextmanager
def decoding() -> Iterator[None]:
    """Whatever a decoder raises comes out as Problem."""
    try:
        yield
    except Problem:
        raise
    except FilmError as error:
        raise Problem(str(error)) from None
    except MemoryError:
        raise Problem("it needs more memory to decode than there is") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Problem(f"it is over {LIMITS.max_pixels:,} pixels") from None
    except Exception:  # decoders have many names for damage, and no one list of them
        raise Problem("it is cut off or damaged") from None

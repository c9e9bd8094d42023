"""Encoded pictures and films → pixels, refusing what would cost too much. Bytes are a stranger's.

Pictures are read as `flamingo_server.media.decode` reads a client's: five formats and no others,
the size taken from the header before anything is decoded, the first frame of an animation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ...film import FilmError, FilmLimits, FilmOptions, read_frames
from ...media import Transform, to_pixels
from .document import MediaPart
from .problems import Problem

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
LIMITS = FilmLimits()


def frames(
    part: MediaPart, transform: Transform, options: FilmOptions, limits: FilmLimits = LIMITS
) -> NDArray[np.uint8]:
    """uint8 [T, size, size, 3], T = 1 for a picture. Raises Problem, and nothing else."""
    with decoding():
        if part.kind == "video":
            return read_frames(part.data, transform, options, limits).pixels
        with open_picture(part.data, limits) as picture:
            return to_pixels(picture, transform)[None]


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

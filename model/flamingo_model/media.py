"""Picture → pixels: the transform a checkpoint was trained with, and the digest of its result.

Knows numpy and Pillow only, because decoding workers import it: no torch, no files, no network.
A model family's preprocessing is an entry of `_KINDS`; nobody else asks which kind it is. Those of
published checkpoints are in preprocessing.py; `pad`, here, is the paper's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flamingo_model import preprocessing

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Transform:
    """How one family turns a picture into `size` × `size` pixels and pixels into numbers.

    `kind` is `pad` (the paper), `clip_resize_then_rgb` (OpenFlamingo), `clip` (Otter,
    flamingo-mini) or `squash` (IDEFICS). Only `pad` turns a picture by its EXIF orientation.

    Raises:
        ValueError: unknown `kind`, `size` below 1, or a zero in `std`.
    """

    kind: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"unknown transform {self.kind!r}: known are {sorted(_KINDS)}")
        if self.size < 1 or 0 in self.std:
            raise ValueError(f"size must be at least 1 and std without zeros: {self}")

    @property
    def version(self) -> str:
        """Names everything that decides what the network sees, for digests and cache keys."""
        numbers = (",".join(map(repr, triple)) for triple in (self.mean, self.std))
        return "/".join((self.kind, _REVISION, str(self.size), *numbers))

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [..., H, W, 3] → float32 [..., 3, H, W], `(x / 255 - mean) / std`."""
        mean, std = np.array((self.mean, self.std), dtype=np.float32)[:, :, None, None]
        planes = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")  # while they are small
        planes /= 255
        planes -= mean
        planes /= std
        return planes


def to_pixels(picture: Image.Image, transform: Transform) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]: the picture in RGB, cut, squashed or padded to the transform's size.

    Raises:
        ValueError: Pillow has no way from the picture's mode to RGB.
        OSError: the picture was not loaded yet and its file is damaged.
    """
    square = _KINDS[transform.kind](picture, transform)
    assert square.mode == "RGB" and square.size == (transform.size, transform.size)
    return np.array(square, dtype=np.uint8)


def media_digest(pixels: NDArray[np.uint8], transform: Transform) -> str:
    """Hex SHA-256 of uint8 pixels [..., H, W, 3], their shape and mode, and the transform.

    The shape is in it because equal bytes in another shape are another picture.
    """
    if pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,):
        raise ValueError(f"expected uint8 [..., H, W, 3], got {pixels.dtype} {pixels.shape}")
    header = f"{transform.version}|RGB|uint8|{pixels.shape}\n"
    digest = hashlib.sha256(header.encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels as a viewer shows the picture, EXIF orientation applied."""
    width, height = picture.size
    return (height, width) if _orientation(picture) >= 5 else (width, height)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright RGB of any Pillow mode, transparency over white (as IDEFICS does).

    16-bit grey keeps its high byte, as Pillow does for 16-bit colour; `F` is read as 0..255.
    """
    orientation = _orientation(picture)
    rgb = _flatten(picture)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _flatten(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        picture = _to_grey(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _to_grey(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture)
    if picture.mode == "F":
        grey = np.nan_to_num(values, posinf=255, neginf=0).clip(0, 255).astype(np.uint8)
    else:
        grey = (values.clip(0, 65535) >> 8).astype(np.uint8)
    if "transparency" in picture.info:
        grey = np.where(values == picture.info["transparency"], np.uint8(255), grey)
    return Image.fromarray(grey)


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata is missing or cannot be read."""
    try:
        value = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # the parser meets a client's bytes; a crooked picture is still a picture
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _pad(picture: Image.Image, transform: Transform) -> Image.Image:
    """Longer side to `size`, centred on the mean colour (Alayrac et al. 2022, vision input)."""
    rgb = to_rgb(picture)
    scale = transform.size / max(rgb.size)
    width, height = (max(1, round(side * scale)) for side in rgb.size)
    red, green, blue = (round(channel * 255) for channel in transform.mean)
    square = Image.new("RGB", (transform.size, transform.size), (red, green, blue))
    resized = rgb.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(resized, ((transform.size - width) // 2, (transform.size - height) // 2))
    return square


def _sized(
    square: Callable[[Image.Image, int], Image.Image],
) -> Callable[[Image.Image, Transform], Image.Image]:
    return lambda picture, transform: square(picture, transform.size)


_REVISION = "1"  # raise it whenever a kind below gives other pixels for the same picture
_KINDS: dict[str, Callable[[Image.Image, Transform], Image.Image]] = {
    "pad": _pad,
    "clip": _sized(preprocessing.clip),
    "clip_resize_then_rgb": _sized(preprocessing.clip_resize_then_rgb),
    "squash": _sized(preprocessing.squash),
}

"""Picture → square, as each published family's reference code does it. Pillow only.

These follow the references to the bit, oddities included, because the checkpoints were trained
with them. None of them reads EXIF orientation: open_clip and OpenFlamingo, Otter, flamingo-mini
and IDEFICS all hand Pillow's picture on as it was stored (transformers turns pictures only when
it fetches them itself, from a URL). All of them read 16-bit grey as Pillow's `convert` does, which
clips: everything above 255 is white.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

_BICUBIC = Image.Resampling.BICUBIC
_LONGEST = 64  # times the size; longer than this, only the middle is resampled


def clip_resize_then_rgb(picture: Image.Image, size: int) -> Image.Image:
    """open_clip's evaluation transform, as OpenFlamingo uses it.

    Resized in the picture's own mode, so a palette picture takes its nearest pixel; RGB comes
    last, and drops transparency. The crop's margin is rounded half to even, as torchvision does.
    """
    return _shortest_edge_square(picture, size, lambda margin: round(margin / 2)).convert("RGB")


def clip(picture: Image.Image, size: int) -> Image.Image:
    """`CLIPImageProcessor` of transformers 4, as Otter and flamingo-mini use it.

    RGB first, dropping transparency (transformers 5 lays it on white instead); the crop's margin
    is rounded down. Its zero padding is for crops larger than the resized picture, which cannot
    be where both have one size.
    """
    return _shortest_edge_square(picture.convert("RGB"), size, lambda margin: margin // 2)


def squash(picture: Image.Image, size: int) -> Image.Image:
    """`IdeficsImageProcessor`: transparency on white, then both sides to `size`, no crop.

    A picture stored as RGB is taken as it is, even where its file names a transparent colour.
    """
    if picture.mode != "RGB":
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        picture = Image.alpha_composite(white, rgba).convert("RGB")
    return picture.resize((size, size), _BICUBIC)


def _shortest_edge_square(
    picture: Image.Image, size: int, half: Callable[[int], int]
) -> Image.Image:
    """Shorter side to `size`, longer one in proportion and cut to its middle."""
    width, height = (int(size * side / min(picture.size)) for side in picture.size)
    left, top = half(width - size), half(height - size)
    if max(width, height) > _LONGEST * size:
        return _middle(picture, size, left / width, top / height)
    resized = picture.resize((width, height), _BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def _middle(picture: Image.Image, size: int, left: float, top: float) -> Image.Image:
    """The square at `left` and `top`, as shares of the sides, without resizing all the rest.

    A thread of 1 × 50 million pixels would become terabytes. Against the whole road the rounding
    of positions may change a value by one; the references run out of memory here.
    """
    short = min(picture.size)
    x, y = left * picture.width, top * picture.height
    margin = 4 * short // size + 4  # what the bicubic kernel sees beyond the square
    box = (int(x) - margin, int(y) - margin, int(x) + short + margin, int(y) + short + margin)
    near = picture.crop(
        (
            max(0, box[0]),
            max(0, box[1]),
            min(box[2], picture.width),
            min(box[3], picture.height),
        )
    )
    x, y = x - max(0, box[0]), y - max(0, box[1])
    return near.resize((size, size), _BICUBIC, (x, y, x + short, y + short))

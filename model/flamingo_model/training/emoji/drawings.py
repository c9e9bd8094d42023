"""Drawings: letters of many fonts and made-up strokes, so that the tower learns form as such.

They have no names; they lift what a user draws by hand and handwriting that was never trained.
Digits, and letters that look like digits, are left out.
"""

from __future__ import annotations

import string
import unicodedata
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .colours import COLOURS

FONTS = tuple(
    Path(matplotlib.get_data_path(), "fonts/ttf", f"DejaVu{name}.ttf")
    for name in ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "Serif-Bold", "Serif-Italic")
)
LIKE_DIGITS = frozenset("OoQlIiZzSsgqbB" + "ΟοІіΙιЗзЅѕбВвՕօ")
NUM_LETTERS, NUM_STROKES = 260, 900
NUM_DRAWINGS = NUM_LETTERS + NUM_STROKES
CANVAS = 96  # drawn larger, then made small

Pixels = NDArray[np.uint8]


@lru_cache
def letters() -> tuple[str, ...]:
    """Latin, Greek, Cyrillic and Armenian letters, the same in every run."""
    ranges = (range(0x391, 0x3CA), range(0x410, 0x450), range(0x531, 0x588), range(0x402, 0x40F))
    found = [*string.ascii_letters, *(chr(c) for r in ranges for c in r)]
    named = [c for c in found if unicodedata.category(c) in ("Lu", "Ll", "Lo")]
    return tuple(c for c in named if c not in LIKE_DIGITS)[:NUM_LETTERS]


@lru_cache
def font(index: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS[index]), 64)


def render_drawing(drawing: int, size: int, rng: np.random.Generator) -> Pixels:
    """[size, size, 3]: drawing number `drawing` by a hand that never draws it twice alike."""
    if drawing < len(letters()):
        ink = letter_ink(letters()[drawing], rng)
    else:
        ink = stroke_ink(drawing, rng)
    placed = blurred(turned(ink, rng), size, rng)
    paper, pen = two_colours(rng)
    mixed = paper + (pen - paper) * placed[..., None]
    mixed += rng.standard_normal(mixed.shape, dtype=np.float32) * rng.uniform(0, 5)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def letter_ink(letter: str, rng: np.random.Generator) -> Image.Image:
    canvas = Image.new("L", (CANVAS, CANVAS))
    chosen = font(int(rng.integers(len(FONTS))))
    draw = ImageDraw.Draw(canvas)
    draw.text((CANVAS / 2, CANVAS / 2), letter, fill=255, font=chosen, anchor="mm")
    return canvas


def stroke_ink(drawing: int, rng: np.random.Generator) -> Image.Image:
    """One to three curves: their points belong to the drawing, their trembling to `rng`."""
    own = np.random.default_rng(drawing)
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    width = int(rng.integers(4, 12))
    for _ in range(own.integers(1, 4)):
        points = own.uniform(0.2, 0.8, (int(own.integers(3, 6)), 2))
        points = points + rng.normal(0, 0.035, points.shape)
        curve = [(float(x), float(y)) for x, y in smooth(points) * CANVAS]
        draw.line(curve, fill=255, width=width, joint="curve")
        for x, y in (curve[0], curve[-1]):
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return canvas


def smooth(points: NDArray[np.float64], per_piece: int = 8) -> NDArray[np.float64]:
    """A Catmull-Rom curve through the points [n, 2]."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, per_piece, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
               + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
    ]  # fmt: skip
    return np.concatenate([*pieces, points[-1:]])


def turned(ink: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A little turned, sheared, stretched and moved."""
    angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.25, 0.25)
    scale = rng.uniform(0.75, 1.35, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    shift = CANVAS / 2 - matrix @ (np.full(2, CANVAS / 2) + rng.uniform(-8, 8, 2))
    (a, b), (c, d) = matrix
    data = (a, b, shift[0], c, d, shift[1])
    return ink.transform(ink.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def blurred(ink: Image.Image, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """As [size, size] in [0, 1]; one in three from very few pixels, as old scans are."""
    if rng.random() < 0.35:
        few = int(rng.integers(8, 20))
        ink = ink.resize((few, few), Image.Resampling.BOX)
    elif rng.random() < 0.5:
        ink = ink.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    large = ink.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float32) / np.float32(255)


def two_colours(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Paper and pen: gray on gray two times in three, else any two that differ enough."""
    if rng.random() < 0.65:
        dark, light = rng.uniform(0, 90), rng.uniform(165, 255)
        pair = (light, dark) if rng.random() < 0.75 else (dark, light)
        return np.full(3, pair[0], np.float32), np.full(3, pair[1], np.float32)
    named = np.array(list(COLOURS.values()), np.float32)
    while True:
        paper, pen = named[rng.choice(len(named), 2)]
        if np.abs(paper - pen).sum() > 150:
            return paper, pen

"""The emoji world: sprites of Noto Color Emoji on coloured backgrounds, composed by Pillow.

Sprites come in families ("red heart", "blue heart" → heart); whole families are held out, so that
a held-out emoji has no look-alike in training. Everything is drawn from a seeded generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import emoji
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .colours import COLOUR_NAMES, COLOURS
from .drawings import NUM_DRAWINGS, render_drawing

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian fonts-noto-color-emoji
SPRITE_SIZE = 72
SCENE_SIZE = 64
COUNTS = ("one", "two", "three", "four")
LAYOUTS = ("single", "left_right", "above_below")
MOTIONS = ("left", "right", "up", "down", "larger", "smaller")
TEXTURES = ("plain", "gradient", "stripes", "checks", "dots", "noise")
NOT_NAMEABLE = (
    "flag face button clock arrow person people man woman men women boy girl baby keycap hand "
    "family couple kiss symbol sign mark o’clock"
).split()

GRID = np.meshgrid(*[np.arange(SCENE_SIZE, dtype=np.float32)] * 2)  # x and y, each [64, 64]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Sprites:
    """`images` [N, 72, 72, 4] RGBA, with a name and a family for each."""

    images: Pixels
    names: tuple[str, ...]

    def nameable(self, index: int) -> bool:
        if index >= len(self.names):  # a drawing
            return False
        words = self.names[index].split()
        plain = not any(word in NOT_NAMEABLE for word in words)
        return plain and len(words) <= 3 and not words[-1].endswith("-thirty")

    def held_out(self, index: int) -> bool:
        """One family in five is never seen in training; decided by its name alone."""
        family = self.names[index].split()[-1]
        return int(hashlib.md5(family.encode()).hexdigest(), 16) % 5 == 0

    @property
    def num_classes(self) -> int:
        """Emoji and drawings."""
        return len(self.names) + NUM_DRAWINGS

    def drawings(self) -> list[int]:
        return list(range(len(self.names), self.num_classes))

    def known(self) -> list[int]:
        """The emoji whose names are learned."""
        return [i for i in self.training() if self.nameable(i)]

    def training(self) -> list[int]:
        return [i for i in range(len(self.names)) if not self.held_out(i)]

    def test(self) -> list[int]:
        return [i for i in range(len(self.names)) if self.held_out(i) and self.nameable(i)]


def load_sprites(cache: Path, font: Path = FONT) -> Sprites:
    """All distinct sprites, rendered once into `cache` (an .npz file)."""
    if not cache.exists():
        images, names = render_sprites(font)
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache, images=images, names=np.array(names))
    with np.load(cache) as stored:
        return Sprites(stored["images"], tuple(str(name) for name in stored["names"]))


def render_sprites(font: Path) -> tuple[Pixels, list[str]]:
    drawn = ImageFont.truetype(str(font), 109)
    seen: set[bytes] = set()
    images, names = [], []
    for character, name in candidates():
        if drawn.getbbox(character) != (0, 0, 136, 128):  # several glyphs, or none
            continue
        sprite = render_sprite(character, drawn)
        if sprite.tobytes() not in seen:
            seen.add(sprite.tobytes())
            images.append(sprite)
            names.append(name)
    return np.stack(images), names


def candidates() -> list[tuple[str, str]]:
    entries = sorted(emoji.EMOJI_DATA.items(), key=lambda item: item[1]["en"])
    return [
        (character, data["en"].strip(":").replace("_", " ").lower() + flag_suffix(character))
        for character, data in entries
        if data["status"] == emoji.STATUS["fully_qualified"] and "skin_tone" not in data["en"]
    ]


def flag_suffix(character: str) -> str:
    """Flags are named after their country alone; make them one family."""
    regional = "\U0001f1e6" <= character[0] <= "\U0001f1ff"
    subdivision = character[0] == "\U0001f3f4" and len(character) > 3
    return " flag" if regional or subdivision else ""


def render_sprite(character: str, font: ImageFont.FreeTypeFont) -> Pixels:
    canvas = Image.new("RGBA", (136, 136), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((0, 4), character, font=font, embedded_color=True)
    return np.asarray(canvas.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `count` copies of one sprite, or a pair of two, on a named background.

    A sprite past the last emoji is a drawing, which brings its own paper. `layout` tells how the
    pair lies; `sprite` is then the left or upper one, `second` the other. With a count of 0 nothing
    is there but the background.
    """

    sprite: int
    background: int
    count: int = 1
    texture: int = 0
    recolour: float | None = None  # hue in [0, 1): the sprite's shape in another colour
    second: int | None = None
    layout: str = "single"

    def classes(self) -> tuple[int, int]:
        """Who is there first and second, -1 for nobody."""
        first = self.sprite if self.count else -1
        return first, -1 if self.second is None else self.second


@dataclass(frozen=True)
class Film:
    """One emoji that moves or changes its size over a still background."""

    scene: Scene
    motion: int
    num_frames: int


def random_scene(
    sprite: int, rng: np.random.Generator, count: int = 1, recolour: float = 0.0
) -> Scene:
    return Scene(
        sprite=sprite,
        background=int(rng.integers(len(COLOURS))),
        count=count,
        texture=int(rng.integers(len(TEXTURES))),
        recolour=float(rng.random()) if rng.random() < recolour else None,
    )


def random_pair(first: int, second: int, rng: np.random.Generator) -> Scene:
    layout = LAYOUTS[1 + int(rng.integers(2))]
    return replace(random_scene(first, rng), second=second, layout=layout)


def empty_scene(rng: np.random.Generator) -> Scene:
    return random_scene(0, rng, count=0)


def random_film(sprite: int, rng: np.random.Generator, num_frames: int) -> Film:
    return Film(random_scene(sprite, rng), int(rng.integers(len(MOTIONS))), num_frames)


def render_scene(scene: Scene, sprites: Sprites, rng: np.random.Generator) -> Pixels:
    """[64, 64, 3] uint8: background, sprites turned and jittered, a little noise."""
    if scene.sprite >= len(sprites.images):
        return render_drawing(scene.sprite - len(sprites.images), SCENE_SIZE, rng)
    canvas = Image.fromarray(render_background(scene, rng))
    shown = [scene.sprite] * scene.count if scene.second is None else [scene.sprite, scene.second]
    for index, (x, y, size) in zip(shown, placements(scene, rng), strict=True):
        sprite = posed(sprites.images[index], size, scene.recolour, rng)
        canvas.paste(sprite, (x, y), sprite)
    return noisy(canvas, rng)


def noisy(canvas: Image.Image, rng: np.random.Generator) -> Pixels:
    pixels = np.array(canvas, dtype=np.float32)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(0, 4)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def render_film(film: Film, sprites: Sprites, rng: np.random.Generator) -> Pixels:
    """[T, 64, 64, 3] uint8: the same turned sprite on the same background, frame by frame."""
    background = Image.fromarray(render_background(film.scene, rng))
    largest = int(rng.integers(34, 50))
    sprite = posed(sprites.images[film.scene.sprite], largest, film.scene.recolour, rng)
    frames = []
    for x, y, size in path(film, rng):
        canvas, small = background.copy(), sprite.resize((size, size), Image.Resampling.BILINEAR)
        canvas.paste(small, (x, y), small)
        frames.append(noisy(canvas, rng))
    return np.stack(frames)


def path(film: Film, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(x, y, size) in each frame."""
    size = int(rng.integers(20, 32))
    free = SCENE_SIZE - size
    start = rng.uniform(0, 0.25) * free
    along = np.linspace(start, free - rng.uniform(0, 0.25) * free, film.num_frames)
    across = np.clip(rng.uniform(0, free) + rng.normal(0, 1, film.num_frames), 0, free)
    motion = MOTIONS[film.motion]
    if motion in ("larger", "smaller"):
        sizes = np.linspace(rng.uniform(14, 22), rng.uniform(38, 52), film.num_frames)
        sizes = sizes[::-1] if motion == "smaller" else sizes
        centre = rng.uniform(26, 38, 2)
        return [
            (round(max(0, centre[0] - s / 2)), round(max(0, centre[1] - s / 2)), round(s))
            for s in sizes
        ]
    along = along[::-1] if motion in ("left", "up") else along
    steps = zip(along, across, strict=True)
    places = [(a, b) if motion in ("left", "right") else (b, a) for a, b in steps]
    return [(round(x), round(y), size) for x, y in places]


def render_background(scene: Scene, rng: np.random.Generator) -> Pixels:
    base = np.array(COLOURS[COLOUR_NAMES[scene.background]]) + rng.normal(0, 7, 3)
    shade = texture_map(TEXTURES[scene.texture], rng) * rng.uniform(12, 26)
    return np.clip(base + shade[..., None], 0, 255).astype(np.uint8)


def texture_map(texture: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """[64, 64] in about [-1, 1]."""
    x, y = GRID
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 16)
    along = x * np.cos(angle) + y * np.sin(angle)
    maps: dict[str, Callable[[], NDArray[np.floating]]] = {
        "plain": lambda: np.zeros_like(x),
        "gradient": lambda: (along - along.mean()) / SCENE_SIZE * 2,
        "stripes": lambda: np.sign(np.sin(along * 2 * np.pi / period)),
        "checks": lambda: np.sign(np.sin(x * np.pi / period) * np.sin(y * np.pi / period)),
        "dots": lambda: np.where(np.hypot(x % period - 4, y % period - 4) < 2.2, 1.0, 0.0),
        "noise": lambda: rng.standard_normal(x.shape, dtype=np.float32) * 0.6,
    }
    return np.asarray(maps[texture](), dtype=np.float32)


def placements(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(x, y, size) of each sprite: one large, or several in cells that do not overlap."""
    if scene.second is not None:
        return pair_placements(scene.layout == "left_right", rng)
    if scene.count == 1:
        size = int(rng.integers(30, 56))
        x, y = rng.integers(0, SCENE_SIZE - size + 1, 2)
        return [(int(x), int(y), size)]
    half = SCENE_SIZE // 2
    cells = rng.permutation(4)[: scene.count]
    placed = []
    for cell in cells:
        size = int(rng.integers(20, 30))
        x, y = rng.integers(0, half - size + 1, 2)
        placed.append((int(x) + half * int(cell % 2), int(y) + half * int(cell // 2), size))
    return placed


def pair_placements(side_by_side: bool, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Two in their halves of the picture, across the other direction roughly in the middle."""
    half, placed = SCENE_SIZE // 2, []
    for number in range(2):
        size = int(rng.integers(25, half + 1))
        along = int(rng.integers(0, half - size + 1)) + half * number
        middle = (SCENE_SIZE - size) / 2
        across = int(np.clip(middle + rng.normal(0, 5), 0, SCENE_SIZE - size))
        placed.append((along, across, size) if side_by_side else (across, along, size))
    return placed


def posed(
    sprite: Pixels, size: int, recolour: float | None, rng: np.random.Generator
) -> Image.Image:
    image = Image.fromarray(sprite if recolour is None else tinted(sprite, recolour))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return image.rotate(float(rng.uniform(-22, 22)), Image.Resampling.BILINEAR)


def tinted(sprite: Pixels, hue: float) -> Pixels:
    """The same shape and shading in one hue, so that colour alone cannot identify it."""
    luminance = sprite[..., :3].astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32)
    tint = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    colour = luminance[..., None] * (0.35 + 0.65 * tint)
    return np.concatenate([colour.astype(np.uint8), sprite[..., 3:]], axis=-1)

"""A pool of pictures and films with the frozen tower's features, and who of them is shown.

Features are computed once; documents name pictures by their number in the pool.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from ...vision_config import VisionConfig
from .alignment import Said
from .colours import COLOUR_NAMES
from .contrastive import SceneWorld, normalise, said_of
from .precision import activations
from .tasks import Shown
from .world import (
    COUNTS,
    MOTIONS,
    Film,
    Pixels,
    Scene,
    Sprites,
    empty_scene,
    random_film,
    random_pair,
    random_scene,
    render_film,
    render_scene,
)

NUM_FRAMES = (4, 6, 8)


@dataclass(frozen=True)
class Sizes:
    """How many pictures of each sort a pool holds."""

    views_of_known: int = 16
    views_of_others: int = 6
    views_of_drawings: int = 4
    counted: int = 9000
    pairs: int = 16000
    films: int = 6000
    empty: int = 800


TEST_SIZES = Sizes(views_of_known=6, views_of_others=6, counted=800, pairs=600, films=300, empty=60)


@dataclass(frozen=True)
class Pool:
    """Pictures and films, what they show, in words and in numbers, and their features
    [T, S, dim] bfloat16."""

    shown: list[Shown]
    said: Said
    features: list[Tensor]

    def numbers(self, wanted: Callable[[Shown], bool]) -> list[int]:
        return [i for i, shown in enumerate(self.shown) if wanted(shown)]

    def batches(self, numbers: Sequence[int]) -> list[tuple[list[int], Tensor]]:
        """Equally long films together: (places in `numbers`, features [n, T, S, dim])."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, number in enumerate(numbers):
            by_length[len(self.features[number])].append(place)
        return [
            (places, torch.stack([self.features[numbers[p]] for p in places]))
            for places in by_length.values()
        ]


class PoolBuilder:
    """Renders scenes and encodes them."""

    def __init__(self, tower: nn.Module, config: VisionConfig, sprites: Sprites, seed: int) -> None:
        self.tower, self.config, self.sprites = tower.eval(), config, sprites
        self.rng = np.random.default_rng(seed)

    def build(self, scenes: Sequence[Scene | Film]) -> Pool:
        features: list[Tensor] = []
        for start in track(range(0, len(scenes), 64), description="features"):
            drawn = [self.render(scene) for scene in scenes[start : start + 64]]
            parts = self.encode(np.concatenate(drawn)).split([len(pixels) for pixels in drawn])
            features += [part.bfloat16() for part in parts]
        described = [describe(scene, self.sprites) for scene in scenes]
        shown = [replace(s, number=number) for number, s in enumerate(described)]
        said = said_of([s.scene if isinstance(s, Film) else s for s in scenes])
        said.facts[:, -1] = torch.tensor([s.motion if isinstance(s, Film) else -1 for s in scenes])
        return Pool(shown, said, features)

    def render(self, scene: Scene | Film) -> Pixels:
        """[T, 64, 64, 3]"""
        if isinstance(scene, Film):
            return render_film(scene, self.sprites, self.rng)
        return render_scene(scene, self.sprites, self.rng)[None]

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Tensor:
        normal = normalise(pixels, self.config).to(memory_format=torch.channels_last)
        with activations():
            return torch.cat([self.tower(part) for part in normal.split(128)])

    def training(self, sizes: Sizes) -> Pool:
        """Named emoji, others, drawings; nothing that is held out."""
        world = SceneWorld(self.sprites, self.rng)
        views = (
            (world.named, sizes.views_of_known),
            (world.others, sizes.views_of_others),
            (world.drawings, sizes.views_of_drawings),
        )
        singles = [
            random_scene(sprite, self.rng, recolour=0.15)
            for classes, num in views
            for sprite in classes
            for _ in range(num)
        ]
        return self.build([*singles, *self.scenes(world.named, sizes)])

    def test(self, sprites: Sequence[int], sizes: Sizes = TEST_SIZES) -> Pool:
        """Other renderings: of emoji that no stage has seen, or of known ones."""
        views = sizes.views_of_known
        singles = [random_scene(sprite, self.rng) for sprite in sprites for _ in range(views)]
        return self.build([*singles, *self.scenes(sprites, sizes)])

    def scenes(self, among: Sequence[int], sizes: Sizes) -> list[Scene | Film]:
        def chosen() -> int:
            return int(self.rng.choice(among))

        rng = self.rng
        counts = rng.integers(1, len(COUNTS) + 1, sizes.counted).tolist()
        return [
            *(random_scene(chosen(), rng, count, recolour=0.1) for count in counts),
            *(random_pair(chosen(), chosen(), rng) for _ in range(sizes.pairs)),
            *(random_film(chosen(), rng, int(rng.choice(NUM_FRAMES))) for _ in range(sizes.films)),
            *(empty_scene(rng) for _ in range(sizes.empty)),
        ]


def describe(scene: Scene | Film, sprites: Sprites) -> Shown:
    if isinstance(scene, Film):
        return replace(describe(scene.scene, sprites), motion=MOTIONS[scene.motion])
    shown = [sprite for sprite in scene.classes() if sprite >= 0]
    named = all(sprites.nameable(sprite) for sprite in shown)
    names = tuple(sprites.names[sprite] for sprite in shown) if named else ()
    count = COUNTS[scene.count - 1] if scene.count else None
    return Shown(names, COLOUR_NAMES[scene.background], count, scene.layout)


class PoolGallery:
    """Pictures of a pool."""

    def __init__(self, pool: Pool, sprites: Sprites, rng: np.random.Generator) -> None:
        self.pool, self.rng = pool, rng
        single = pool.numbers(lambda s: s.count == "one" and not s.is_pair and not s.motion)
        self.views: dict[int, list[int]] = defaultdict(list)
        sprite_of = pool.said.classes[:, 0].tolist()
        for number in single:
            self.views[sprite_of[number]].append(number)
        shared = [sprite for sprite, views in self.views.items() if len(views) > 1]
        self.emoji = [sprite for sprite in shared if sprite < len(sprites.names)]
        self.drawings = [sprite for sprite in shared if sprite >= len(sprites.names)]
        self.singles = [n for n in single if pool.shown[n].names]
        drawn = {n for n in single if sprite_of[n] >= len(sprites.names)}
        self.counts: dict[str | None, list[int]] = defaultdict(list)
        for number in pool.numbers(lambda s: not s.is_pair and not s.motion and bool(s.names)):
            if number not in drawn:
                self.counts[pool.shown[number].count].append(number)
        self.pairs = pool.numbers(lambda s: s.is_pair and bool(s.names))
        self.films = pool.numbers(lambda s: s.motion is not None)
        self.empties = pool.numbers(lambda s: s.count is None)
        self.names = sorted({name for n in self.singles for name in pool.shown[n].names})
        self.same: dict[str, list[int]] = defaultdict(list)
        for number, shown in enumerate(pool.shown):
            sort = "pair" if shown.is_pair else "film" if shown.motion else "one"
            if number not in drawn and shown.names:
                for fact in (*shown.names, shown.background):
                    self.same[f"{sort} {fact}"].append(number)

    def take(self, numbers: Sequence[int]) -> Shown:
        return self.pool.shown[numbers[int(self.rng.integers(len(numbers)))]]

    def classes(self, num: int) -> list[Callable[[], Shown]]:
        """Emoji, or one time in four drawings."""
        are_drawings = len(self.drawings) >= num and self.rng.random() < 0.25
        chosen = self.rng.choice(self.drawings if are_drawings else self.emoji, num, replace=False)
        return [lambda sprite=int(sprite): self.take(self.views[sprite]) for sprite in chosen]  # type: ignore[misc]

    def single(self) -> Shown:
        return self.take(self.singles)

    def counted(self) -> Shown:
        counts = list(self.counts.values())
        return self.take(counts[self.rng.integers(len(counts))])

    def pair(self) -> Shown:
        return self.take(self.pairs)

    def film(self) -> Shown:
        return self.take(self.films)

    def empty(self) -> Shown:
        return self.take(self.empties)

    def name(self) -> str:
        return self.names[self.rng.integers(len(self.names))]

    def like(self, shown: Shown) -> Shown:
        sort = "pair" if shown.is_pair else "film" if shown.motion else "one"
        facts = (*shown.names, shown.background)
        return self.take(self.same[f"{sort} {facts[self.rng.integers(len(facts))]}"])

"""Pictures in documents: a pool of scenes with the frozen tower's features, and who asks what.

Features are computed once. Batches name pictures by their number in the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ...cross_attention import visible_media
from ...flamingo import Flamingo
from .contrastive import normalise
from .documents import (
    BINDING_TEMPLATES,
    COLOUR_TEMPLATES,
    COUNT_TEMPLATES,
    Encoder,
    Example,
    Tokens,
    caption,
    colour_answer,
    count_answer,
    episode_labels,
    in_context_weights,
    made_up_words,
)
from .world import COUNTS, Pixels, Scene, Sprites, random_scene, render_scene

VIEWS_PER_SPRITE = 16
NUM_COUNT_SCENES = 16_000
NUM_TEST_COUNT_SCENES = 800


@dataclass(frozen=True)
class Pool:
    """Scenes with the frozen tower's features, [N, S, dim] bfloat16."""

    scenes: list[Scene]
    features: Tensor
    views: dict[int, list[int]]  # sprite → its single pictures
    num_count_scenes: int  # the last scenes, which have all counts alike

    @classmethod
    def build(
        cls,
        scenes: list[Scene],
        num_count_scenes: int,
        model: Flamingo,
        sprites: Sprites,
        rng: np.random.Generator,
    ) -> Pool:
        views: dict[int, list[int]] = {}
        for index, scene in enumerate(scenes):
            if scene.count == 1:
                views.setdefault(scene.sprite, []).append(index)
        parts = []
        for start in track(range(0, len(scenes), 128), description="features"):
            drawn = [render_scene(s, sprites, rng) for s in scenes[start : start + 128]]
            parts.append(encode(model, np.stack(drawn)))
        return cls(scenes, torch.cat(parts), views, num_count_scenes)


@torch.no_grad()
def encode(model: Flamingo, pixels: Pixels) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features: Tensor = model.vision(normalise(pixels, model.config.vision))
    return features.bfloat16()


def training_scenes(sprites: Sprites, rng: np.random.Generator) -> list[Scene]:
    singles = [
        random_scene(sprite, rng, recolour=0.2)
        for sprite in sprites.training()
        for _ in range(VIEWS_PER_SPRITE)
    ]
    drawn = rng.choice(sprites.training(), NUM_COUNT_SCENES)
    counts = rng.integers(1, len(COUNTS) + 1, NUM_COUNT_SCENES)
    return singles + [random_scene(int(s), rng, int(c)) for s, c in zip(drawn, counts, strict=True)]


def held_out_scenes(sprites: Sprites, rng: np.random.Generator) -> list[Scene]:
    """The same of emoji that no stage has seen."""
    singles = [random_scene(sprite, rng) for sprite in sprites.test() for _ in range(6)]
    drawn = rng.choice(sprites.test(), NUM_TEST_COUNT_SCENES)
    counts = rng.integers(1, len(COUNTS) + 1, NUM_TEST_COUNT_SCENES)
    return singles + [random_scene(int(s), rng, int(c)) for s, c in zip(drawn, counts, strict=True)]


class PictureWorld:
    """Draws documents with pictures from a pool."""

    def __init__(
        self,
        pool: Pool,
        sprites: Sprites,
        encoder: Encoder,
        rng: np.random.Generator,
        held_out_words: bool = False,
    ) -> None:
        self.pool, self.sprites, self.encoder, self.rng = pool, sprites, encoder, rng
        self.held_out_words = held_out_words
        self.classes = list(pool.views)

    def document(self, kind: int, progress: float = 1.0) -> Tokens:
        drawn = (self.binding, self.colour, self.count, self.caption)[kind](progress)
        return self.encoder.examples(drawn, kind, background=0.0)

    def binding(self, progress: float) -> list[Example]:
        most = 2 if progress < 0.3 or self.rng.random() < 0.6 else 5
        num_ways = int(self.rng.integers(2, most + 1))
        return self.episode(num_ways, num_ways + int(self.rng.integers(1, 4)))

    def episode(self, num_ways: int, num_examples: int) -> list[Example]:
        """Every class once, then classes again; made-up words name them."""
        order = episode_labels(num_ways, num_examples, self.rng)
        classes = self.rng.choice(self.classes, num_ways, replace=False)
        words = made_up_words(num_ways, self.rng, self.held_out_words)
        prompt, answer = BINDING_TEMPLATES[self.rng.integers(len(BINDING_TEMPLATES))]
        return [
            Example(prompt, answer.format(words[c]), w, int(self.rng.choice(self.pool.views[s])))
            for c, w in zip(order, in_context_weights(order), strict=True)
            for s in (int(classes[c]),)
        ]

    def colour(self, progress: float) -> list[Example]:
        return self.questions(COLOUR_TEMPLATES, colour_answer, len(self.pool.scenes))

    def count(self, progress: float) -> list[Example]:
        return self.questions(COUNT_TEMPLATES, count_answer, self.pool.num_count_scenes)

    def questions(
        self,
        templates: tuple[tuple[str, str], ...],
        answer_of: Callable[[Scene], str],
        among_last: int,
    ) -> list[Example]:
        """One or two pictures, each asked about by itself."""
        examples = []
        for _ in range(self.rng.integers(1, 3)):
            index = len(self.pool.scenes) - 1 - int(self.rng.integers(among_last))
            prompt, answer = templates[self.rng.integers(len(templates))]
            said = answer_of(self.pool.scenes[index])
            examples.append(Example(prompt, answer.format(said), picture=index))
        return examples

    def caption(self, progress: float) -> list[Example]:
        index = int(self.rng.integers(len(self.pool.scenes)))
        return [Example("Output:", caption(self.pool.scenes[index], self.sprites), picture=index)]


@dataclass(frozen=True)
class PictureBatch:
    """Padded rows [B, T] with the pool numbers of their pictures [B, M]."""

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    media_index: Tensor
    pictures: Tensor

    @classmethod
    def collate(cls, documents: list[Tokens], image_token_id: int) -> PictureBatch:
        length = max(len(d.ids) for d in documents)
        num_media = max(len(d.pictures) for d in documents)

        def padded(rows: Iterable[Iterable[float]], fill: float, size: int) -> Tensor:
            filled = [[*row] + [fill] * (size - len([*row])) for row in rows]
            return torch.tensor(filled)

        return cls(
            ids=padded((d.ids for d in documents), 0, length),
            weights=padded((d.weights for d in documents), 0.0, length),
            kinds=torch.tensor([d.kind for d in documents]),
            media_index=padded(
                (visible_media(d.ids, image_token_id) for d in documents), -1, length
            ),
            pictures=padded((d.pictures for d in documents), 0, num_media),
        )

"""Words in place of pictures: how the language model learns what pictures will be good for.

In stage 2 a "picture" is one vector: what it shows, each fact's word embedded and turned by a
matrix of its own, and a noisy random code for how the thing looks. It is added to every token
that sees the picture, where stage 3's first cross-attention will write. Not shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .colours import COLOUR_NAMES
from .documents import Encoder
from .tasks import Shown
from .world import COUNTS, MOTIONS

CODE_DIM = 128
NAME_LENGTH = 3  # tokens of a name that are told
LAYOUT_WORDS = {"single": "one", "left_right": "left", "above_below": "above"}
NUM_ROLES = 2 * NAME_LENGTH + 4

Code = NDArray[np.float32]


class StandIns(nn.Module):
    """What pictures show → vectors [P, dim] beside the token embeddings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.roles = nn.Parameter(torch.empty(NUM_ROLES, dim, dim))
        self.code = nn.Linear(CODE_DIM, dim, bias=False)
        for role in self.roles.data:
            nn.init.orthogonal_(role, gain=0.6)
        nn.init.orthogonal_(self.code.weight, gain=12.0)

    def forward(self, embeddings: Tensor, words: Tensor, codes: Tensor) -> Tensor:
        """Embedded words [V, dim], their ids [P, roles] (-1: none), codes [P, 128] of length 1."""
        told = embeddings[words.clamp(min=0)] * (words >= 0).unsqueeze(-1)
        out: Tensor = torch.einsum("prd,rde->pe", told, self.roles) + self.code(codes)
        return out


def fact_words(shown: Shown, encoder: Encoder) -> list[int]:
    """The ids of every role's word."""
    names = [encoder.text(f" {name}")[:NAME_LENGTH] for name in shown.names]
    ids = []
    for name in (*names, [], [])[:2]:
        ids += [*name, *[-1] * (NAME_LENGTH - len(name))]
    words = (shown.background, shown.count, LAYOUT_WORDS[shown.layout], shown.motion)
    return [*ids, *(encoder.text(f" {word}")[0] if word else -1 for word in words)]


class TextGallery:
    """Draws what pictures might show, without pictures; one name in four is any noun."""

    def __init__(
        self, names: Sequence[str], nouns: Sequence[str], rng: np.random.Generator
    ) -> None:
        self.names, self.nouns, self.rng = names, nouns, rng

    def name(self) -> str:
        names = self.names if self.rng.random() < 0.75 else self.nouns
        return names[int(self.rng.integers(len(names)))]

    def shown(self, names: tuple[str, ...], code: Code | None = None, **facts: str) -> Shown:
        background = facts.pop("background", None) or self.pick(COLOUR_NAMES)
        code = unit(self.rng.standard_normal(CODE_DIM)) if code is None else code
        return Shown(names, background, code=code, **facts)  # type: ignore[arg-type]

    def pick(self, words: Sequence[str]) -> str:
        return words[int(self.rng.integers(len(words)))]

    def classes(self, num: int) -> list[Callable[[], Shown]]:
        """Codes that lie more or less near each other, views that scatter more or less."""
        shared = self.rng.standard_normal(CODE_DIM) * self.rng.uniform(0, 0.9)
        scatter = self.rng.uniform(0.3, 1.0)
        return [self.views(shared, scatter) for _ in range(num)]

    def views(self, shared: NDArray[np.float64], scatter: float) -> Callable[[], Shown]:
        own = unit(shared + self.rng.standard_normal(CODE_DIM))
        names = (self.name(),) if self.rng.random() < 0.6 else ()

        def view() -> Shown:
            noise = self.rng.standard_normal(CODE_DIM) * scatter * CODE_DIM**-0.5
            return self.shown(names, unit(own + noise))

        return view

    def single(self) -> Shown:
        return self.shown((self.name(),))

    def counted(self) -> Shown:
        return self.shown((self.name(),), count=self.pick(COUNTS))

    def pair(self) -> Shown:
        layout = self.pick(("left_right", "above_below"))
        return self.shown((self.name(), self.name()), layout=layout)

    def film(self) -> Shown:
        return self.shown((self.name(),), motion=self.pick(MOTIONS))

    def like(self, shown: Shown) -> Shown:
        """The same names or background, or both."""
        drawn = self.pair() if shown.is_pair else self.film() if shown.motion else self.counted()
        keeps = self.rng.integers(3)
        names = shown.names if keeps != 1 else drawn.names
        background = shown.background if keeps != 0 else drawn.background
        return Shown(names, background, drawn.count, drawn.layout, drawn.motion, code=drawn.code)


def unit(x: NDArray[np.floating]) -> Code:
    return np.asarray(x / np.linalg.norm(x), dtype=np.float32)


def blurred(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """With noise of any strength, and a part of another picture's vector: pictures are read so."""
    strength = torch.rand(len(vectors), 1, generator=generator) * 0.8
    noise = torch.randn(vectors.shape, generator=generator)
    other = vectors[torch.randperm(len(vectors), generator=generator)]
    mixed = torch.lerp(vectors, other, torch.rand(len(vectors), 1, generator=generator) * 0.2)
    return mixed + noise * strength


def stand_in_tensors(pictures: Sequence[Shown], encoder: Encoder) -> tuple[Tensor, Tensor]:
    words = torch.tensor([fact_words(shown, encoder) for shown in pictures])
    codes = np.stack(
        [np.zeros(CODE_DIM, np.float32) if p.code is None else p.code for p in pictures]
    )
    return words, torch.from_numpy(codes)


def at_tokens(vectors: Tensor, which: Tensor) -> Tensor:
    """[P, dim] and picture numbers [B, T] (-1: none) → [B, T, dim]."""
    padded = F.pad(vectors, (0, 0, 1, 0))
    return padded[which + 1]

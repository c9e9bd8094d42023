"""What a picture says, as one vector: how the language model learns what pictures will be good for.

Who is there is said by a class's code (the table the contrastive stage learned its classes by),
background, count, layout and motion by a vector for each value. In stage 2 such vectors, blurred,
stand in for pictures: they are added to every token that sees one, where stage 3's first
cross-attention will write. Fixed from a seed, and not shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .colours import COLOUR_NAMES
from .tasks import Shown
from .world import COUNTS, LAYOUTS, MOTIONS

CODE_DIM = 64
NUM_PLACES = 2  # the only or first object; the one to the right or below
FACTS = {"background": COLOUR_NAMES, "count": COUNTS, "layout": LAYOUTS, "motion": MOTIONS}
CODE_SIZE, FACT_SIZE = 12.0, 6.0  # beside token embeddings of length 16
CODE_SCALE, FACT_SCALE = 20.0, 8.0  # of logits, where a vector is read

Code = NDArray[np.float32]


class StandIns(nn.Module):
    """Codes and facts → vectors, and back. The directions are orthonormal where `dim` allows."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        super().__init__()
        num_facts = sum(map(len, FACTS.values()))
        directions = torch.empty(NUM_PLACES * CODE_DIM + num_facts, dim)
        nn.init.orthogonal_(directions, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("directions", directions)
        self.directions: Tensor

    def place(self, which: int) -> Tensor:
        """[CODE_DIM, dim]: where the code of the first or second object is said."""
        return self.directions[which * CODE_DIM : (which + 1) * CODE_DIM]

    def facts(self) -> Tensor:
        return self.directions[NUM_PLACES * CODE_DIM :]

    def forward(self, codes: Tensor, facts: Tensor) -> Tensor:
        """Codes [P, 2, CODE_DIM] of length 1 or 0, facts [P, 4] (-1: not said) → [P, dim]."""
        said = F.pad(self.facts(), (0, 0, 1, 0))[self.rows(facts)].sum(1)
        told: Tensor = CODE_SIZE * codes.flatten(1) @ self.directions[: NUM_PLACES * CODE_DIM]
        return told + FACT_SIZE * said

    def rows(self, facts: Tensor) -> Tensor:
        """Of `FACTS`' values put one after the other, 1 the first; 0 is nothing."""
        sizes = torch.tensor([0, *(len(values) for values in FACTS.values())][:-1]).cumsum(0)
        return torch.where(facts < 0, 0, facts + sizes + 1)

    def read_code(self, vectors: Tensor, place: int) -> Tensor:
        """[..., dim] → [..., CODE_DIM] of length 1; what says next to nothing stays short, or its
        gradient would drown all others."""
        return F.normalize((vectors @ self.place(place).T).float(), dim=-1, eps=1.0)

    def read_facts(self, vectors: Tensor) -> dict[str, Tensor]:
        """Logits [..., values] of each fact."""
        logits = (vectors @ self.facts().T).float() * (FACT_SCALE / FACT_SIZE)
        parts = logits.split([len(values) for values in FACTS.values()], dim=-1)
        return dict(zip(FACTS, parts, strict=True))


def fact_numbers(shown: Shown) -> list[int]:
    """The place of each fact's value in `FACTS`; -1 for a picture's motion."""
    return [
        -1 if (value := getattr(shown, fact)) is None else values.index(value)
        for fact, values in FACTS.items()
    ]


class TextGallery:
    """Draws what pictures might show, without pictures.

    `codes` [len(names), CODE_DIM] are those of the named, `others` those of all else that the
    tower was taught.
    """

    def __init__(
        self, names: Sequence[str], codes: Code, others: Code, rng: np.random.Generator
    ) -> None:
        self.names, self.codes, self.rng = list(names), codes, rng
        self.code_of = dict(zip(names, codes, strict=True))
        self.all_codes = np.concatenate([codes, others])

    def name(self) -> str:
        return self.pick(self.names)

    def pick(self, words: Sequence[str]) -> str:
        return words[int(self.rng.integers(len(words)))]

    def shown(self, *names: str, **facts: str | None) -> Shown:
        views = [self.view(self.code_of[name], self.rng.uniform(0.1, 0.8)) for name in names]
        return self.seen(names, views, **facts)

    def seen(self, names: tuple[str, ...], views: list[Code], **facts: str | None) -> Shown:
        code = np.zeros((NUM_PLACES, CODE_DIM), np.float32)
        for place, view in enumerate(views):
            code[place] = view
        background = facts.pop("background", None) or self.pick(COLOUR_NAMES)
        return Shown(names, background, code=code, **facts)  # type: ignore[arg-type]

    def view(self, code: Code, scatter: float) -> Code:
        return unit(code + scatter * unit(self.rng.standard_normal(CODE_DIM)))

    def classes(self, num: int) -> list[Callable[[], Shown]]:
        """Known things or new ones, more or less alike; views that scatter more or less."""
        shared, share = self.novel(), self.rng.uniform(0, 1)
        are_known = self.rng.random() < 0.35
        chosen = self.rng.choice(len(self.all_codes), num, replace=False)
        scatter = self.rng.uniform(0.1, 0.9)
        return [
            self.views(
                self.all_codes[i] if are_known else unit(self.novel() + share * shared), scatter
            )
            for i in chosen
        ]

    def novel(self) -> Code:
        """Between up to three known codes, and beside them."""
        between = self.rng.choice(len(self.all_codes), self.rng.integers(1, 4), replace=False)
        mixed = self.rng.dirichlet(np.ones(len(between))) @ self.all_codes[between]
        return unit(unit(mixed) + 0.5 * unit(self.rng.standard_normal(CODE_DIM)))

    def views(self, own: Code, scatter: float) -> Callable[[], Shown]:
        return lambda: self.seen((), [self.view(own, scatter)])

    def single(self) -> Shown:
        return self.shown(self.name())

    def counted(self) -> Shown:
        return self.shown(self.name(), count=self.pick(COUNTS))

    def pair(self) -> Shown:
        return self.shown(self.name(), self.name(), layout=self.pick(LAYOUTS[1:]))

    def film(self) -> Shown:
        return self.shown(self.name(), motion=self.pick(MOTIONS))

    def empty(self) -> Shown:
        return self.shown(count=None)

    def like(self, shown: Shown) -> Shown:
        """The same names or background, or both."""
        drawn = self.pair() if shown.is_pair else self.film() if shown.motion else self.counted()
        keeps = self.rng.integers(3)
        names = shown.names if keeps != 1 and shown.names else drawn.names
        background = shown.background if keeps != 0 else drawn.background
        facts = {"count": drawn.count, "layout": drawn.layout, "motion": drawn.motion}
        told = {fact: value for fact, value in facts.items() if value is not None}
        return self.shown(*names, background=background, **told)


def unit(x: NDArray[np.floating]) -> Code:
    return np.asarray(x / np.linalg.norm(x), dtype=np.float32)


def blurred(vectors: Tensor) -> Tensor:
    """With noise of any strength, and a part of another picture's vector: pictures are read so."""
    strength = torch.rand(len(vectors), 1) * 0.5
    other = vectors[torch.randperm(len(vectors))]
    mixed = torch.lerp(vectors, other, torch.rand(len(vectors), 1) * 0.15)
    return mixed + torch.randn_like(vectors) * strength


def stand_in_tensors(pictures: Sequence[Shown]) -> tuple[Tensor, Tensor]:
    """Codes [P, 2, CODE_DIM] and facts [P, 4] of pictures that are only words."""
    codes = np.stack([picture.code for picture in pictures if picture.code is not None])
    return torch.from_numpy(codes), torch.tensor([fact_numbers(shown) for shown in pictures])


def at_tokens(vectors: Tensor, which: Tensor) -> Tensor:
    """[P, dim] and picture numbers [B, T] (-1: none) → [B, T, dim]."""
    padded = F.pad(vectors, (0, 0, 1, 0))
    return padded[which + 1]

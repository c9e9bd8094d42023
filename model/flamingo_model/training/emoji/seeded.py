"""A stage whose data are made, not read: each step draws its own from the seed and its number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from ..loop import Term
from ..optimise import Group


def by_shape(
    learned: Mapping[str, nn.Parameter], decays: bool = True, rate: float = 1.0
) -> list[Group]:
    """Muon for what has rows and columns, at `rate` times AdamW's for the rest."""
    shaped = {k: p for k, p in learned.items() if p.ndim > 1}
    rest = {k: p for k, p in learned.items() if k not in shaped}
    return [Group(shaped, decays, rule="muon", rate=rate), Group(rest, decays)]


class SeededStage(ABC):
    """A `Stage` of the loop. What draws shares `rng`, which begins anew at every step: a run that
    goes on has no place in the data to find again."""

    module: nn.Module

    def __init__(self, seed: int, rng: np.random.Generator | None = None) -> None:
        self.seed, self.rng = seed, rng or np.random.default_rng(seed)

    def terms(self, step: int) -> Iterator[Term]:
        self.rng.bit_generator.state = np.random.default_rng((self.seed, step)).bit_generator.state
        loss, figures = self.losses(step)
        yield Term(loss, {"loss": loss.item(), **figures})

    @abstractmethod
    def losses(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """A step's loss, and what is logged of it."""

    @abstractmethod
    def groups(self) -> list[Group]: ...

    def evaluate(self) -> dict[str, float]:
        return {}

    def finish(self) -> None:
        """Once after the last step."""
        return None

    def units(self) -> list[nn.Module]:
        return []

    def position(self) -> None:
        return None

    def seek(self, position: None) -> None:
        return None

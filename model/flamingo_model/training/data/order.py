"""The order of an epoch: a function of the seed and the epoch's number, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .document import Record


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """0 … count - 1 in the order that the numbers of `key`, none below 0, decide."""
    return np.random.default_rng(key).permutation(count)


class Listed(ABC):
    """A `Source` that finds any record by its number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record(self, at: int) -> Record:
        """The record with this number. Opens nothing: that is left to its `read`."""

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Record]:
        return (self.record(int(at)) for at in permutation(len(self), seed, epoch)[start:])

"""95% intervals: Wilson's for shares of right answers, the bootstrap's for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959963984540054
NUM_DRAWS = 1000
DRAWN_AT_ONCE = 100  # bounds memory
Interval = tuple[float, float]


def wilson(right: float, asked: int) -> Interval:
    """Of a share `right` / `asked` (Wilson 1927). Raises ValueError for nobody asked."""
    if asked < 1:
        raise ValueError("an interval needs at least one answer")
    share = right / asked
    middle = (share + Z**2 / (2 * asked)) / (1 + Z**2 / asked)
    half = Z * math.sqrt(share * (1 - share) / asked + Z**2 / (4 * asked**2)) / (1 + Z**2 / asked)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(num: int, statistic: Callable[[Sequence[int]], float], seed: int = 0) -> Interval:
    """Of `statistic` over `num` cases: it is given the numbers of the cases, drawn anew each time.

    A draw it raises ValueError for, as ROC-AUC does for one of a single class, is left out.
    """
    dice = np.random.default_rng(seed)
    found = list[float]()
    for _ in range(NUM_DRAWS):
        try:
            found.append(statistic(dice.integers(0, num, num).tolist()))
        except ValueError:
            continue
    if not found:
        raise ValueError("no draw has a value")
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The bootstrap's of a mean."""
    known = np.asarray(values, dtype=float)
    if not len(known):
        raise ValueError("an interval needs at least one value")
    dice, means = np.random.default_rng(seed), list[float]()
    while len(means) < NUM_DRAWS:
        draws = dice.integers(0, len(known), (DRAWN_AT_ONCE, len(known)))
        means += known[draws].mean(1).tolist()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, Interval]:
    """The mean of ours − theirs, case by case, with its interval."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return sum(differences) / len(differences), mean_interval(differences)

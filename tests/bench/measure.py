"""Times of several sides, taken in turn, and the figures made of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from bench.ours import problem_of
from bench.peer import PeerError
from flamingo_client import FlamingoError

Side = Callable[[int], list[float]]  # the number of the round → its samples
Watch = Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """Seconds, smallest first; with a `problem` there are none to rely on."""

    samples: tuple[float, ...] = ()
    problem: str = ""

    @property
    def least(self) -> float:
        return self.samples[0]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        return f"{milliseconds(self.least)} (median {milliseconds(self.median)})"


@dataclass(frozen=True)
class Figure:
    """`must` is "≤ 1/20", "≥ 10" or, with a unit, "≤ 3 ms"; empty for what is only told.

    `seen` is None where it could not be measured, and `how` says why.
    """

    name: str
    must: str
    seen: float | None
    how: str

    @property
    def unit(self) -> str:
        return "".join(self.must.split()[2:])

    @property
    def is_met(self) -> bool | None:
        """None: nothing was asked, or nothing seen."""
        if self.seen is None or not self.must:
            return None
        sign, bound = self.must.split()[:2]
        limit = float(Fraction(bound))
        return self.seen <= limit if sign == "≤" else self.seen >= limit


def alternate(sides: Mapping[str, Side], rounds: int, watch: Watch) -> dict[str, Times]:
    """Every side once a round, never two at a time: what slows the machine slows them all.

    A side that fails is left out from then on; the others go on.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    problems = dict[str, str]()
    for number in range(rounds):
        for name in [name for name in sides if name not in problems]:
            watch(f"{name}, round {number + 1} of {rounds}")
            try:
                samples[name] += sides[name](number)
            except (FlamingoError, PeerError) as error:
                problems[name] = problem_of(error)
    return {name: Times(tuple(sorted(s)), problems.get(name, "")) for name, s in samples.items()}


def ratio(name: str, must: str, above: Times, below: Times, how: str = "") -> Figure:
    """Of the least of each: what else the machine does only adds."""
    if problem := above.problem or below.problem:
        return Figure(name, must, None, problem)
    told = f"{above} ÷ {below}"
    return Figure(name, must, above.least / below.least, f"{told}; {how}" if how else told)


def milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"

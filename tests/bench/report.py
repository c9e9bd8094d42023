"""BENCHMARKS.md and its picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from bench.measure import Figure, Times
from bench.prefill import SHOTS

PLOT = Path(__file__).parent / "first_token.png"
LINES = {"OpenFlamingo": "OpenFlamingo", "ours cold": "ours, cold", "ours warm": "ours, warm"}
INTRODUCTION = """\
# Benchmarks

OpenFlamingo 2.0.1 and this server side by side, in turn and never both at once, with the same
random weights: a language model in the shape of OPT-125m (12 × 768), ViT-B/16, 64 latents,
cross-attention before every layer. A prompt of k shots is k examples and a query, each with a
224-pixel picture and about 20 tokens. Ours is timed through HTTP, from a request that is ready to
be sent to tokens in the client's hands; OpenFlamingo around its own `model.generate`, with pictures
that are pixels already. Ratios are of minima over the rounds. Cold: pictures and words nobody has
seen before. Warm: seen before, and a new question about them.
"""


@dataclass
class Report:
    """Filled as the benchmarks go."""

    command: str
    settings: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)  # of the peer
    figures: list[Figure] = field(default_factory=list)
    answers: list[tuple[str, str]] = field(default_factory=list)
    shipped: list[str] = field(default_factory=list)
    times: dict[str, Times] = field(default_factory=dict)  # to the first token
    seconds: float = 0.0

    def write(self, path: Path, plot: Path = PLOT) -> None:
        lines = [INTRODUCTION, *self.conditions(), "", *self.table(), "", *self.checks(), ""]
        if self.times:
            draw(self.times, plot)
            picture = os.path.relpath(plot, path.parent)
            lines += [f"![Time to the first token over shots]({picture})", ""]
        if self.shipped:
            lines += ["The shipped checkpoint, 64-pixel pictures:", "", "```", *self.shipped, "```"]
        path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")

    def conditions(self) -> Iterator[str]:
        theirs = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        yield f"- Machine: {machine()}"
        yield f"- Ours: Python {platform.python_version()}, torch {version('torch')}; " + ", ".join(
            f"{name} {value}" for name, value in self.settings.items()
        )
        yield f"- OpenFlamingo: {theirs}; float32"
        yield f"- Commands: `make peers`, `{self.command}`; {self.seconds / 60:.0f} minutes"

    def table(self) -> Iterator[str]:
        yield "| figure | must reach | seen | how |"
        yield "| --- | --- | --- | --- |"
        for figure in self.figures:
            yield f"| {figure.name} | {figure.must} | {seen(figure)} | {figure.how} |"

    def checks(self) -> Iterator[str]:
        if self.answers:
            yield "| the answers, float32, against OpenFlamingo's | |"
            yield "| --- | --- |"
            yield from (f"| {name} | {found} |" for name, found in self.answers)


def seen(figure: Figure) -> str:
    if figure.seen is None:
        return "–"
    value = f"{figure.seen:.3g}{' ' + figure.unit if figure.unit else ''}"
    return {None: value, True: f"**{value}**", False: f"{value}, missed"}[figure.is_met]


def machine() -> str:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    memory = f"{pages * size / 2**30:.0f} GiB"
    return f"{processor()}, {os.cpu_count()} cores, {memory}, {platform.system()}"


def processor() -> str:
    """Linux tells its name; others tell at least its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def draw(times: dict[str, Times], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for who, label in LINES.items():
        known = [n for n in SHOTS if (found := times.get(f"{who} {n}")) and not found.problem]
        axes.plot(known, [times[f"{who} {n}"].median for n in known], marker="o", label=label)
    axes.set(xlabel="shots", ylabel="seconds to the first token", yscale="log", xticks=SHOTS)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)

"""A training stage's progress: a bar on the terminal and one JSON line per logged step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(is_shown: bool = True) -> Progress:
    """A task's name, bar, steps, times, and its field `figures`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    return Progress(*columns, refresh_per_second=1, disable=not is_shown)


class StageLog:
    """Counts steps and keeps running means of what `add` is given."""

    def __init__(self, stage: str, num_steps: int, path: Path, every: int = 20) -> None:
        self.stage, self.num_steps, self.path, self.every = stage, num_steps, path, every
        self.step, self.start = 0, time.monotonic()
        self.sums: dict[str, list[float]] = {}

    def steps(self) -> Iterator[int]:
        with progress_bar() as progress:
            bar = progress.add_task(self.stage, total=self.num_steps, figures="")
            for step in range(self.num_steps):
                self.step = step
                yield step
                if (step + 1) % self.every == 0:
                    progress.update(bar, figures=self.flush())
                progress.advance(bar)

    def add(self, **figures: float) -> None:
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(float(value))

    def flush(self) -> str:
        means = {k: round(sum(v) / len(v), 4) for k, v in self.sums.items()}
        self.sums.clear()
        self.write(means)
        return " ".join(f"{k} {v:.3g}" for k, v in means.items())

    def write(self, figures: dict[str, float]) -> None:
        row = {"stage": self.stage, "step": self.step + 1, **figures}
        row["seconds"] = round(time.monotonic() - self.start, 1)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

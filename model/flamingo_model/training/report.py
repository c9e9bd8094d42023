"""What a run tells: a bar, one JSON line a step, TensorBoard's files, and curves at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from .log import progress_bar

SHOWN = ("loss", "gradient")


@dataclass
class Report:
    """Writes into `folder`, or nowhere without one: one process of many is enough.

    Every `every`-th step is told, and what was measured beside the loss is told always.
    """

    folder: Path | None = None
    name: str = "training"
    every: int = 1
    started: float = field(default_factory=time.monotonic)
    board: Any = None
    progress: Progress | None = None

    @property
    def path(self) -> Path | None:
        return self.folder / "log.jsonl" if self.folder else None

    def rewind(self, step: int) -> None:
        """Forgets what a killed run told after the state that is gone on with."""
        if self.folder is None or self.path is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(self.path) if row["step"] <= step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        from torch.utils.tensorboard.writer import SummaryWriter

        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def steps(self, first: int, last: int) -> Iterator[int]:
        with progress_bar(is_shown=self.folder is not None) as progress:
            bar = progress.add_task(self.name, total=last, completed=first, figures="")
            self.progress = progress
            for step in range(first, last):
                yield step
                progress.advance(bar)
        if self.board is not None:
            self.board.close()

    def write(self, step: int, figures: dict[str, float]) -> None:
        """`step` counts from 0, lines from 1: how many steps are done."""
        if self.path is None or not self.is_told(step, figures):
            return
        row = {"step": step + 1, **figures, "seconds": round(time.monotonic() - self.started, 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in figures.items():
            self.board.add_scalar(name, value, step + 1)
        if self.progress is not None:
            told = " ".join(f"{k} {figures[k]:.3g}" for k in SHOWN if k in figures)
            self.progress.update(self.progress.task_ids[0], figures=told)

    def is_told(self, step: int, figures: dict[str, float]) -> bool:
        return (step + 1) % self.every == 0 or any(k.startswith("held_out") for k in figures)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def draw_curves(log: Path, path: Path) -> None:
    """Every loss over the steps, and the rate below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = read_log(log)
    names = dict.fromkeys(k for row in rows for k in row if k.startswith(("loss", "held_out")))
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        style = "o-" if name.startswith("held_out") else "-"
        upper.plot(*zip(*points, strict=True), style, label=name, linewidth=1, markersize=3)
    lower.plot([row["step"] for row in rows], [row.get("rate") for row in rows], linewidth=1)
    upper.set(ylabel="loss")
    lower.set(xlabel="step", ylabel="rate")
    upper.grid(alpha=0.3)
    upper.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

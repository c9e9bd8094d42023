"""Figures → a picture: score over shots, with intervals, baselines and what is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flamingo_eval.benchmark import Result, Row
from flamingo_eval.published import PUBLISHED, SHOTS

MOST_WIDE = 3  # panels side by side
BASELINES = (("chance", ":"), ("pixels", "--"), ("features", "-."))


def plot(path: Path, results: Sequence[Result], model: str) -> None:
    """A panel a task: lines over shots, or bars where there is one number of shots alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for result in results for row in result.rows]
    tasks = list(dict.fromkeys(row.task for row in rows))
    wide = max(1, min(MOST_WIDE, len(tasks)))
    tall = max(1, -(-len(tasks) // wide))
    canvas = FigureCanvasAgg(Figure(figsize=(5 * wide, 3.6 * tall), layout="constrained"))
    panels = canvas.figure.subplots(tall, wide, squeeze=False).ravel()
    for task, panel in zip(tasks, panels, strict=False):
        some = [row for row in rows if row.task == task]
        draw = lines if len({row.shots for row in some}) > 1 else bars
        draw(panel, some, model)
        panel.set_title(task)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=6)
    for panel in panels[len(tasks) :]:
        panel.axis("off")
    canvas.figure.savefig(path, dpi=120)


def lines(panel: Any, rows: Sequence[Row], model: str) -> None:
    for other, figures in PUBLISHED.get(rows[0].task, {}).items():
        panel.plot(SHOTS[: len(figures)], figures, lw=1, alpha=0.5, marker=".", label=other)
    for group in dict.fromkeys(row.group for row in rows):
        some = sorted((r for r in rows if r.group == group), key=lambda row: row.shots)
        shots = [row.shots for row in some]
        look = {"lw": 2, "marker": "o", "capsize": 3, "label": f"{model} {group}".strip()}
        panel.errorbar(shots, [value(row) for row in some], yerr=spread(some), **look)
    for name, style in BASELINES:
        known = [(r.shots, getattr(r, name)) for r in rows if getattr(r, name) is not None]
        if known:
            panel.plot(*zip(*known, strict=True), style, color="grey", lw=1, label=name)
    panel.set_xlabel("examples per class" if rows[0].per_class else "shots")
    panel.set_ylabel(rows[0].metric)
    panel.set_xticks(sorted({row.shots for row in rows}))


def bars(panel: Any, rows: Sequence[Row], model: str) -> None:
    names = [row.group or model for row in rows]
    panel.barh(names, [value(row) for row in rows], xerr=spread(rows), capsize=3, alpha=0.7)
    panel.invert_yaxis()
    for name, style in BASELINES:
        known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        for level in dict.fromkeys(known):
            panel.axvline(level, ls=style, color="grey", lw=1, label=name)
    for other, figures in PUBLISHED.get(rows[0].task, {}).items():
        if rows[0].shots in SHOTS[: len(figures)]:
            panel.barh([other], [figures[SHOTS.index(rows[0].shots)]], color="grey", alpha=0.4)
    unit = "per class" if rows[0].per_class else "shots"
    panel.set_xlabel(f"{rows[0].metric}, {rows[0].shots} {unit}")
    if rows[0].scale == 1:
        panel.set_xlim(0, 1.05)


def value(row: Row) -> float:
    return row.value * row.scale


def spread(rows: Sequence[Row]) -> list[list[float]]:
    """How far the intervals reach below and above, never less than nothing."""
    below = [max(0.0, row.value - row.interval[0]) * row.scale for row in rows]
    return [below, [max(0.0, row.interval[1] - row.value) * row.scale for row in rows]]

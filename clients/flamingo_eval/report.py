"""Figures → a table and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flamingo_eval.benchmark import Difference, Result, Row
from flamingo_eval.metrics.intervals import Interval
from flamingo_eval.published import figure

REASONS_SHOWN = 3  # all are in the JSON
BESIDE = ("Flamingo-9B", "OpenFlamingo-9B", "IDEFICS-9B")  # in the table; all are in the plot


def print_results(results: Sequence[Result], console: Console) -> None:
    rows = [row for result in results for row in result.rows]
    if rows:
        console.print(table(rows))
    for difference in (d for result in results for d in result.differences):
        console.print(f"{difference.of} − {difference.to}: {said(difference)}")
    for row in (row for row in rows if row.failed):
        num, where = sum(row.failed.values()), f"{row.task} {row.group}".strip()
        some = "; ".join(list(row.failed)[:REASONS_SHOWN])
        console.print(f"{where}, {row.shots} shots: {num} got no answer: {some}", style="red")
    for note in dict.fromkeys(row.note for row in rows if row.note):
        console.print(note, style="red", markup=False)
    for result in results:
        if result.problem:
            console.print(result.problem, style="red", markup=False)


def table(rows: Sequence[Row]) -> Table:
    """The columns that some row fills."""
    columns = {
        "task": [name(row) for row in rows],
        "shots": [f"{row.shots}/class" if row.per_class else str(row.shots) for row in rows],
        "metric": [row.metric for row in rows],
        "score": [number(row.value, row.scale) for row in rows],
        "± sd": [number(row.deviation, row.scale) for row in rows],
        "95% interval": [span(row.interval, row.scale) for row in rows],
        "n": [str(row.num) for row in rows],
        "failed": [str(sum(row.failed.values()) or "") for row in rows],
        "chance": [number(row.chance) for row in rows],
        "nearest pixels": [number(row.pixels) for row in rows],
        "nearest features": [number(row.features) for row in rows],
        "ours − features": [said(row.less_features) for row in rows],
        **{model: [number(figure(row.task, model, row.shots)) for row in rows] for model in BESIDE},
    }
    shown = Table()
    filled = {title: cells for title, cells in columns.items() if any(cells)}
    for title in filled:
        shown.add_column(title, justify="left" if title in ("task", "metric") else "right")
    for cells in zip(*filled.values(), strict=True):
        shown.add_row(*cells)
    return shown


def name(row: Row) -> str:
    return f"{row.task}: {row.group}" if row.group else row.task


def number(value: float | None, scale: float = 1.0) -> str:
    """Shares with three digits behind the point, published scales with one."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:.1f}" if abs(scaled) > 1.0001 or scale > 1 else f"{scaled:.3f}"


def span(interval: Interval, scale: float = 1.0) -> str:
    return f"[{number(interval[0], scale)}, {number(interval[1], scale)}]"


def said(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = difference.interval
    return f"{difference.mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def write_json(path: Path, run: Mapping[str, Any], results: Iterable[Result]) -> None:
    """`run` says what was asked of whom; figures are in the metric's own unit, times `scale`."""
    found = [asdict(result) for result in results]
    rows = [row for result in found for row in result["rows"]]
    differences = [one for result in found for one in result["differences"]]
    problems = {result["task"]: result["problem"] for result in found if result["problem"]}
    content = {"run": dict(run), "rows": rows, "differences": differences, "problems": problems}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

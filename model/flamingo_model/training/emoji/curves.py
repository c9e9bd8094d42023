"""What a run's log says, as one picture.

`python -m flamingo_model.training.emoji.curves LOG OUT.png`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

from ..report import read_log

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = {
    "vision": ("views", "classes", "pairs", "written_who", "written_size"),
    "language": ("binding_right", "hidden_right", "name_right", "what_right", "yes_no_right"),
    "alignment": ("size", "who", "motion"),
    "documents": ("binding_right", "name_right", "caption_right", "what_right", "yes_no_right"),
}


def merge_logs(run: Path, every: int = 20) -> None:
    """The logs of a run's stages as one, `run`/log.jsonl: of `every` steps the means."""
    rows = []
    for stage in PANELS:
        told = read_log(run / stage / "log.jsonl")
        for start in range(0, len(told), every):
            some = told[start : start + every]
            names = dict.fromkeys(name for row in some for name in row)
            values = {n: [row[n] for row in some if n in row] for n in names}
            means = {n: round(sum(v) / len(v), 4) for n, v in values.items()}
            last = {n: some[-1][n] for n in ("step", "seconds")}
            rows.append({"stage": stage, **means, **last})
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(log: Path, out: Path) -> None:
    """A panel a stage: what was logged of its steps, in their order."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(16, 3.6))
    for axis, (stage, names) in zip(axes, PANELS.items(), strict=True):
        for name in names:
            steps, values = line(rows, stage, name)
            axis.plot(steps, values, label=name)
        axis.set(title=stage, xlabel="step")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def line(rows: list[dict[str, Any]], stage: str, name: str) -> tuple[list[int], list[float]]:
    chosen = [row for row in rows if row["stage"] == stage and name in row]
    return [row["step"] for row in chosen], [row[name] for row in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flamingo_model.training.emoji.curves")
    parser.add_argument("log", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    draw(chosen.log, chosen.out)


if __name__ == "__main__":
    main()

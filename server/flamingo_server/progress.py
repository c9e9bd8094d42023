"""What the command line draws with rich: a bar for bytes, and the table of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from flamingo_model.checkpoints.published import Published

WIDE = 220  # columns where no terminal says how many: a pipe's reader wants whole names


@contextmanager
def bytes_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives the function that is told of each piece done."""
    words = TextColumn("{task.description}", markup=False)
    console = Console(stderr=True)
    with Progress(
        words, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda num_bytes: progress.advance(task, num_bytes)


def print_models(models: Sequence[Published]) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=WIDE)
    table = Table(title="Flamingo checkpoints, and which of them this version serves")
    table.add_column("name", no_wrap=True)
    for name in ("serves", "family", "language model", "vision tower", "interval"):
        table.add_column(name)
    for name in ("template", "size", "licence"):
        table.add_column(name)
    for model in models:
        table.add_row(
            model.name,
            "yes" if model.can_load else "not yet",
            model.family,
            model.language_model,
            model.vision_tower,
            model.interval,
            model.template,
            model.image_size,
            model.licence,
        )
    console.print(table)

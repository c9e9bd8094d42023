"""`flamingo eval TASK… --url …`: what a server's model scores, as a table, JSON and a plot."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flamingo_client import AsyncFlamingoClient, FlamingoError
from flamingo_eval.asking import Asker, Style
from flamingo_eval.benchmark import Begin, Choice, Result, run_task
from flamingo_eval.plot import plot
from flamingo_eval.prompts import FAMILY, WORDINGS
from flamingo_eval.report import print_results, write_json
from flamingo_eval.selection import SELECTIONS
from flamingo_eval.tasks import GROUPS, TASKS, chosen
from flamingo_eval.tasks.base import MissingFiles, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = f"{', '.join(GROUPS)}, {', '.join(TASKS)}"
    parser.add_argument("tasks", nargs="+", metavar="TASK", help=f"of {known}")
    parser.add_argument("--url", default=None, help="server (FLAMINGO_URL, http://127.0.0.1:8000)")
    parser.add_argument("--api-key", default=None, help="key (FLAMINGO_API_KEY)")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of the usual files (data)"
    )
    parser.add_argument(
        "--shots", type=numbers, default=None, metavar="N,N", help="examples (each task's own)"
    )
    parser.add_argument("--select", choices=SELECTIONS, default="random", help="which (random)")
    parser.add_argument(
        "--pool", type=count, default=2048, help="examples to select from; 0: all (2048)"
    )
    parser.add_argument(
        "--trials", type=positive, default=None, help="runs of other seeds (each task's own)"
    )
    parser.add_argument("--seed", type=count, default=0, help="of the first trial (0)")
    parser.add_argument(
        "--num", type=positive, default=None, help="queries a trial (each task's own)"
    )
    parser.add_argument("--concurrency", type=positive, default=8, help="requests at once (8)")
    parser.add_argument(
        "--num-beams", type=positive, default=None, help="for all open-ended tasks (as published)"
    )
    parser.add_argument("--max-tokens", type=positive, default=None, help="likewise")
    parser.add_argument(
        "--ensemble", type=positive, default=1, help="orders of the shots, closed-ended (1)"
    )
    parser.add_argument("--normalize", choices=("sum", "mean"), default="sum", help="likelihood")
    parser.add_argument(
        "--prompts",
        choices=(FAMILY, *WORDINGS),
        default=FAMILY,
        help="wording: of the loaded family, or as published (family)",
    )
    parser.add_argument("--out", type=Path, default=None, help="folder for results.json and .png")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def count(text: str) -> int:
    if (value := int(text)) < 0:
        raise ValueError("at least 0")
    return value


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError("at least 1")
    return value


def run(options: argparse.Namespace) -> None:
    """Ends the process with a line on what is wrong, or with 1 where answers are missing."""
    try:
        if options.ensemble > 1 and options.prompts != FAMILY:
            raise ValueError(f"--ensemble needs --prompts {FAMILY}")
        failed = asyncio.run(evaluate(options, wide_console()))
    except (FlamingoError, ValueError, OSError) as error:
        sys.exit(f"flamingo eval: {error}")
    sys.exit(1 if failed else 0)


async def evaluate(options: argparse.Namespace, console: Console) -> bool:
    """Whether some question got no answer."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request
    tasks = chosen(options.tasks)
    choice = Choice(
        options.data,
        options.shots,
        options.num,
        options.trials,
        options.select,
        options.seed,
        options.pool,
    )
    style = Style(
        options.prompts,
        options.num_beams,
        options.max_tokens,
        options.ensemble,
        options.normalize,
    )
    connection = {"base_url": options.url, "api_key": options.api_key}
    results = list[Result]()
    async with AsyncFlamingoClient(**{k: v for k, v in connection.items() if v}) as client:
        server = await client.version()
        asker = Asker(client, options.concurrency, style)
        with bars(console) as begin:
            for task in tasks:
                results.append(await attempt(task, choice, asker, begin))
    print_results(results, console)
    if options.out:
        write(options, server, results)
    return any(result.problem or any(row.failed for row in result.rows) for result in results)


async def attempt(task: Task, choice: Choice, asker: Asker, begin: Begin) -> Result:
    """A task that cannot be run says why; the others go on."""
    try:
        return await run_task(task, choice, asker, begin)
    except (MissingFiles, ValueError, OSError) as error:
        return Result(task.name, [], [], str(error))


def write(options: argparse.Namespace, server: dict[str, Any], results: list[Result]) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    asked = {k: v for k, v in vars(options).items() if k not in ("run", "api_key", "out")}
    asked["data"] = str(options.data)
    write_json(options.out / "results.json", {"server": server, "asked": asked}, results)
    plot(options.out / "results.png", results, str(server.get("model") or "this server"))


def wide_console() -> Console:
    """A file has room for the whole table."""
    return Console(width=None if sys.stdout.isatty() else 240)


@contextmanager
def bars(console: Console) -> Iterator[Begin]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:

        def begin(name: str, total: int) -> Callable[[], None]:
            bar = progress.add_task(name, total=total)
            return lambda: progress.advance(bar)

        yield begin


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="flamingo eval", description=__doc__)
    add_arguments(parser)
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()

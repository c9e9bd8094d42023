"""`make bench`: OpenFlamingo and us side by side; writes BENCHMARKS.md and first_token.png.

`python tests/bench/run.py [TOPIC ...] [--quick]`; with topics named, only they run and nothing is
written unless --output says where.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.status import Status

from bench import answers, crowd, decode, first_token, over_http, prefill
from bench.measure import Figure
from bench.peer import ROOT, PeerError
from bench.report import PLOT, Report, seen
from bench.stage import Stage, set_up

Topic = Callable[[Stage, Report], Iterator[Figure]]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # not without the servers
    chosen, console, started = parse(), Console(highlight=False), time.perf_counter()
    report = Report(command_of(chosen), {"threads": str(chosen.threads), **chosen.fastest})
    places = places_of(chosen)
    with console.status("starting") as status:
        try:
            with set_up(chosen.threads, chosen.fastest, chosen.quick, watch(status)) as stage:
                report.versions = stage.peer.versions
                for name in chosen.topics or TOPICS:
                    for figure in guarded(name, stage, report):
                        report.figures.append(figure)
                        console.print(line_of(figure), soft_wrap=True, markup=False)
                    report.seconds = time.perf_counter() - started
                    if places is not None:  # what stands is kept if a later topic is stopped
                        report.write(*places)
        except PeerError as error:
            sys.exit(str(error))
    console.print(f"{report.seconds / 60:.1f} minutes")


def guarded(name: str, stage: Stage, report: Report) -> Iterator[Figure]:
    """A topic that breaks says so, and the others go on."""
    try:
        yield from TOPICS[name](stage, report)
    except Exception as error:
        yield Figure(f"the rest of {name}", "", None, f"failed: {type(error).__name__}: {error}")


def prefills(stage: Stage, report: Report) -> Iterator[Figure]:
    found = prefill.measure(stage)
    report.times = found.times
    yield from found.figures()


def decodes(stage: Stage, report: Report) -> Iterator[Figure]:
    yield from decode.measure(stage).figures()


def compared(stage: Stage, report: Report) -> Iterator[Figure]:
    """No figures: whether the answers are the same."""
    report.answers = list(answers.compared(stage))
    for name, found in report.answers:
        stage.watch(f"{name}: {found}")
    yield from ()


def shipped(stage: Stage, report: Report) -> Iterator[Figure]:
    """No figures: the older benchmark of the shipped checkpoint."""
    stage.watch("the shipped checkpoint")
    report.shipped = list(first_token.table())
    yield from ()


def overhead(stage: Stage, report: Report) -> Iterator[Figure]:
    stage.watch("what HTTP adds")
    yield from over_http.overhead(stage.threads, 10 if stage.is_quick else 40)


def health(stage: Stage, report: Report) -> Iterator[Figure]:
    stage.watch("/healthz under load")
    yield from over_http.health(stage)


TOPICS: dict[str, Topic] = {
    "answers": compared,
    "prefill": prefills,
    "decode": decodes,
    "clients": lambda stage, report: crowd.clients(stage),
    "candidates": lambda stage, report: crowd.ranking(stage),
    "overhead": overhead,
    "health": health,
    "shipped": shipped,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="OpenFlamingo and us side by side.")
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(TOPICS))
    parser.add_argument("--quick", action="store_true", help="one round, fewer shots and tokens")
    parser.add_argument("--threads", type=int, default=2, help="of each side (2)")
    text = "settings of our fastest type, as kernels=int4 (which is the default)"
    parser.add_argument("--fastest", nargs="+", type=setting, default=None, help=text)
    parser.add_argument("--output", type=Path, default=None, help="default: BENCHMARKS.md")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.topics) - TOPICS.keys()):
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    chosen.fastest = dict(chosen.fastest or [("kernels", "int4")])
    return chosen


def places_of(chosen: argparse.Namespace) -> tuple[Path, Path] | None:
    """Where the report and its picture go."""
    if chosen.output is not None:
        return chosen.output, chosen.output.with_suffix(".png")
    return None if chosen.topics else (ROOT / "BENCHMARKS.md", PLOT)


def setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def command_of(chosen: argparse.Namespace) -> str:
    arguments = shlex.join(sys.argv[1:])
    return f'make bench ARGS="{arguments}"' if arguments else "make bench"


def watch(status: Status) -> Callable[[str], None]:
    return lambda doing: status.update(doing)


def line_of(figure: Figure) -> str:
    must = f" (must be {figure.must})" if figure.must else ""
    return f"{figure.name}: {seen(figure).replace('*', '')}{must}: {figure.how}"


if __name__ == "__main__":
    main()

"""What a check found, added up; as a table on the terminal or as JSON."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .document import Source
from .examine import Finding
from .order import Listed

_SIDES = (64, 128, 224, 336, 512, 1024)  # pixels; a medium counts at the first it fits within
_SIDE_NAMES = (*(f"up to {side}" for side in _SIDES), f"over {_SIDES[-1]}")
_SHOWN = 20
_EXAMPLES = 20


class TooManyBad(ValueError):
    """More of a source is bad than was allowed."""


@dataclass(frozen=True)
class Report:
    """`documents` counts good ones, and all that follows is of those alone.

    `shorter_sides` counts pictures and films by pixels; `same_documents` and `same_media` count
    repetitions, by SHA-256 of what is said and shown, or of the file; examples are pairs of places.
    """

    documents: int
    pictures: int
    films: int
    film_seconds: float
    words: int
    tokens: int | None
    most_words: int
    most_media: int
    shorter_sides: dict[str, int]
    same_documents: int
    same_documents_examples: list[tuple[str, str]]
    same_media: int
    same_media_examples: list[tuple[str, str]]
    bad: int
    bad_records: list[tuple[str, str]]

    @property
    def records(self) -> int:
        return self.documents + self.bad

    def judge(self, max_bad_share: float) -> None:
        """Raises TooManyBad, also where there is no record at all."""
        if self.bad > max_bad_share * self.records or not self.records:
            share = f" ({self.bad / self.records:.3%})" if self.records else ""
            raise TooManyBad(
                f"{self.bad:,} of {self.records:,} records are bad{share}; "
                f"at most {max_bad_share:.3%} may be"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"records": self.records, **asdict(self)}


class Repeats:
    """Digests met more than once, and pairs of places as examples."""

    def __init__(self) -> None:
        self._first = dict[bytes, str]()
        self.count, self.examples = 0, list[tuple[str, str]]()

    def add(self, digest: bytes, place: str) -> None:
        short = digest[:16]  # a source may have many millions
        if short not in self._first:
            self._first[short] = place
            return
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append((self._first[short], place))


@dataclass
class Tally:
    """Adds findings up."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    most_words: int = 0
    most_media: int = 0
    sides: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, str]] = field(default_factory=list)
    documents: Repeats = field(default_factory=Repeats)
    media: Repeats = field(default_factory=Repeats)

    def add(self, finding: Finding) -> None:
        if finding.problem:
            self.bad.append((finding.place, finding.problem))
            return
        self.counts.update(documents=1, words=finding.words, tokens=finding.tokens)
        self.most_words = max(self.most_words, finding.words)
        self.most_media = max(self.most_media, len(finding.media))
        self.documents.add(finding.digest, finding.place)
        for medium in finding.media:
            self.counts[medium.kind] += 1
            self.seconds += medium.seconds
            self.sides[_side(medium.width, medium.height)] += 1
            self.media.add(medium.digest, finding.place)

    def report(self, with_tokens: bool) -> Report:
        return Report(
            documents=self.counts["documents"],
            pictures=self.counts["image"],
            films=self.counts["video"],
            film_seconds=round(self.seconds, 1),
            words=self.counts["words"],
            tokens=self.counts["tokens"] if with_tokens else None,
            most_words=self.most_words,
            most_media=self.most_media,
            shorter_sides={name: self.sides[name] for name in _SIDE_NAMES if self.sides[name]},
            same_documents=self.documents.count,
            same_documents_examples=self.documents.examples,
            same_media=self.media.count,
            same_media_examples=self.media.examples,
            bad=len(self.bad),
            bad_records=sorted(self.bad, key=lambda found: _by_number(found[0])),
        )


def print_report(report: Report, title: str) -> None:
    console = Console()
    console.print(_facts(report, title))
    if report.shorter_sides:
        console.print(_sides(report))
    _print_pairs(console, "the same documents", report.same_documents_examples, " = ")
    _print_pairs(console, "bad records", report.bad_records, ": ")


def _facts(report: Report, title: str) -> Table:
    table = Table(title=escape(title), show_header=False)
    good = max(1, report.documents)
    words = (
        f"{report.words:,}  ({report.words / good:.1f} a document, at most {report.most_words:,})"
    )
    media = (report.pictures + report.films) / good
    for name, value in {
        "documents": f"{report.documents:,}",
        "bad records": f"{report.bad:,}",
        "pictures": f"{report.pictures:,}",
        "films": f"{report.films:,}  ({report.film_seconds:,} s)" if report.films else "0",
        "media a document": f"{media:.1f}, at most {report.most_media:,}",
        "words": words,
        "tokens": "" if report.tokens is None else f"{report.tokens:,}",
        "documents met before": f"{report.same_documents:,}",
        "pictures and films met before": f"{report.same_media:,}",
    }.items():
        if value:
            table.add_row(name, value)
    return table


def _sides(report: Report) -> Table:
    table = Table(title="pictures and films by their shorter side")
    table.add_column("pixels")
    table.add_column("", justify="right")
    table.add_column("")
    most = max(report.shorter_sides.values())
    for name, count in report.shorter_sides.items():
        table.add_row(name, f"{count:,}", "█" * max(1, round(30 * count / most)))
    return table


def _print_pairs(console: Console, title: str, pairs: list[tuple[str, str]], between: str) -> None:
    if pairs:
        console.print(f"\n{title}:", highlight=False)
    for one, other in pairs[:_SHOWN]:
        console.print(f"  {one}{between}{other}", markup=False, highlight=False, soft_wrap=True)
    if len(pairs) > _SHOWN:
        console.print(f"  and {len(pairs) - _SHOWN:,} more (--json has them all)")


@contextmanager
def records_bar(
    title: str, source: Source, limit: int | None = None
) -> Iterator[Callable[[], None]]:
    """A bar on standard error; gives the function that is told of each record.

    How many records shards have is known only when all were read.
    """
    total = min(len(source), limit or len(source)) if isinstance(source, Listed) else limit
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)


def _side(width: int, height: int) -> str:
    side = min(width, height)
    return next(
        (name for most, name in zip(_SIDES, _SIDE_NAMES, strict=False) if side <= most),
        _SIDE_NAMES[-1],
    )


def _by_number(place: str) -> list[tuple[int, str]]:
    """A key that puts line 9 before line 10."""
    pieces = re.split(r"(\d+)", place)
    return [(int(piece), "") if piece.isdecimal() else (0, piece) for piece in pieces]

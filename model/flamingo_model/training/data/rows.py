"""Text files as numbered rows: one pass finds where each begins, later ones read single rows."""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .document import Part, Record
from .files import Folder, short_names
from .order import Listed
from .problems import Problem, SourceError, record

Span = tuple[int, int, int]  # first byte, byte after the last, line number from 1
Spans = Callable[[Path], Iterator[Span]]


@dataclass(frozen=True, eq=False)
class RowFile:
    path: Path
    name: str
    spans: NDArray[np.int64]  # [rows, 3]

    def place(self, at: int) -> str:
        return f"{self.name}:{self.spans[at, 2]}"

    def read(self, at: int) -> bytes:
        first, end, _ = self.spans[at].tolist()
        with self.path.open("rb") as file:
            file.seek(first)
            return file.read(end - first)


class Rows:
    """All rows of some files, numbered through.

    Raises:
        SourceError: no rows.
    """

    def __init__(self, paths: Sequence[str], spans: Spans) -> None:
        found = [Path(path) for path in paths]
        self.files = [
            RowFile(
                path, name, np.fromiter(chain.from_iterable(spans(path)), np.int64).reshape(-1, 3)
            )
            for path, name in zip(found, short_names(found), strict=True)
        ]
        self.ends = np.cumsum([len(file.spans) for file in self.files])
        if not len(self):
            raise SourceError(f"{', '.join(file.name for file in self.files[:5])}: no records")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def find(self, at: int) -> tuple[RowFile, int]:
        """The file that holds row `at`, and its number in there."""
        number = int(np.searchsorted(self.ends, at, side="right"))
        return self.files[number], at - int(self.ends[number - 1] if number else 0)


@dataclass(frozen=True, eq=False)
class RowSource(Listed):
    """A record a row. Paths in a row start at its file's folder, or at `root`."""

    rows: Rows
    root: Path | None

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, at: int) -> Record:
        file, row = self.rows.find(at)
        return record(file.place(row), lambda: self.parts(file, row))

    def folder(self, file: RowFile) -> Folder:
        return Folder(self.root or file.path.parent)

    @abstractmethod
    def parts(self, file: RowFile, row: int) -> Iterator[Part]:
        """Those of row `row`. Raises Problem."""


def line_spans(path: Path) -> Iterator[Span]:
    """Lines that are not blank."""
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield at, at + len(line), number
            at += len(line)


def csv_spans(path: Path) -> Iterator[Span]:
    """Rows after the header; one may run over several lines, between quotes."""
    lines = _Lines(path)
    rows = csv.reader(lines, delimiter=delimiter(path))
    at, number = 0, 1
    try:
        for row in rows:
            if row and number > 1:
                yield at, lines.at, number
            at, number = lines.at, rows.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{path}:{number}: {error}") from None


def csv_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [name.strip() for name in next(csv.reader(file, delimiter=delimiter(path)), [])]


def csv_row(header: Sequence[str], data: bytes, delimiter: str) -> dict[str, Any]:
    """One row by its columns' names. Raises Problem."""
    try:
        lines = StringIO(data.decode(), newline="\n")  # not `splitlines`, which knows ten others
        cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
    except UnicodeDecodeError:
        raise Problem("not UTF-8") from None
    except csv.Error as error:
        raise Problem(f"not a row of CSV: {error}") from None
    if len(cells) != len(header):
        raise Problem(f"{len(cells)} columns, where the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def json_row(data: bytes) -> dict[str, Any]:
    """One JSON object. Raises Problem."""
    try:
        row = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Problem(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise Problem("not a JSON object")
    return row


def delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


class _Lines:
    """A file's lines as text, and how many bytes of it were handed out."""

    def __init__(self, path: Path) -> None:
        self.at, self._file = 0, path.open("rb")

    def __iter__(self) -> Iterator[str]:
        with self._file:
            for line in self._file:
                self.at += len(line)
                yield line.decode(errors="replace")

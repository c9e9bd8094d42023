"""A path → the documents in it, whichever of five formats it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import urlsplit

from ...config import fits
from .document import Source
from .files import expand, is_url
from .folder import FolderSource
from .interleaved import InterleavedSource
from .mmc4 import open_mmc4
from .problems import Problem, SourceError
from .rows import json_row, line_spans
from .table import TableSource, check_columns, is_csv
from .webdataset import WebDatasetSource

FORMATS: Mapping[str, Callable[..., Source]] = {
    "interleaved": InterleavedSource.open,
    "folder": FolderSource.open,
    "table": TableSource.open,
    "webdataset": WebDatasetSource.open,
    "mmc4": open_mmc4,
}
_ROWS = (".jsonl", ".ndjson")


def open_source(path: str, format: str = "auto", **options: Any) -> Source:
    """The documents at a file, a folder, an address, or a pattern of several (`{000..009}`, `*`).

    `format` is one of `FORMATS`, or `auto`: what is there decides. Options are those of the
    format's own `open`.

    Raises:
        SourceError: nothing there, or of no known format; an unknown format or option.
    """
    found, paths = find_format(path, format)
    _check_options(found, options)
    return FORMATS[found](paths, **options)


def find_format(path: str, format: str = "auto") -> tuple[str, Sequence[str]]:
    """The format's name, and the files (or the one folder) it is read from.

    Raises:
        SourceError: as `open_source`.
    """
    if format != "auto" and format not in FORMATS:
        known = ", ".join(["auto", *FORMATS])
        raise SourceError(f"unknown format {format!r}: known are {known}")
    paths: Sequence[str] = expand(path)
    if format != "folder" and len(paths) == 1 and Path(paths[0]).is_dir():
        paths = _files_in(Path(paths[0])) or paths
    return (_look(paths) if format == "auto" else format), paths


def _check_options(format: str, options: Mapping[str, object]) -> None:
    hints = get_type_hints(FORMATS[format])
    known = [name for name in hints if name not in ("paths", "return")]
    for name, value in options.items():
        if name not in known:
            raise SourceError(f"{format} has no option {name!r}: it has {', '.join(known)}")
        if not any(fits(value, kind) for kind in get_args(hints[name]) or [hints[name]]):
            raise SourceError(f"option {name!r} of {format} cannot be {value!r}")


def _files_in(folder: Path) -> list[str]:
    """The shards in a folder, or its one file of rows; [] where it has neither."""
    files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    shards = [str(path) for path in files if path.suffix == ".tar"]
    rows = [path for path in files if path.suffix in _ROWS or is_csv(path.name)]
    if not shards and len(rows) > 1:
        names = ", ".join(path.name for path in rows[:5])
        raise SourceError(f"{folder} has several files ({names}): name one, or a pattern")
    return shards or [str(path) for path in rows]


def _look(paths: Sequence[str]) -> str:
    first = paths[0]
    suffix = Path(urlsplit(first).path if is_url(first) else first).suffix.lower()
    if suffix == ".tar":
        return "webdataset"
    if is_url(first):
        raise SourceError("only shards (.tar) are read over HTTP")
    if Path(first).is_dir():
        return "folder"
    if is_csv(first):
        return "table"
    if suffix not in _ROWS:
        raise SourceError(f"{first}: no folder, .jsonl, .csv, .tsv or .tar")
    return _look_at_row(Path(first))


def _look_at_row(path: Path) -> str:
    """By the first row that can be read at all."""
    for start, end, _ in line_spans(path):
        with path.open("rb") as file:
            file.seek(start)
            try:
                row = json_row(file.read(end - start))
            except Problem:
                continue
        if "parts" in row:
            return "interleaved"
        if "text_list" in row:
            return "mmc4"
        check_columns([*row], str(path))
        return "table"
    raise SourceError(f"{path}: no line of it is a JSON object")

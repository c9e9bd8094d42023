"""Paths as users write them, and files that a record names, confined to one folder."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath, relpath
from pathlib import Path
from typing import Literal

from .problems import Missing, Problem, SourceError

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
FILMS = frozenset({"mp4", "mov", "webm", "mkv", "m4v"})
MAX_BYTES = 2**30  # of one picture or film
_MAX_PATHS = 100_000
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def media_kind(suffix: str) -> Literal["image", "video"] | None:
    """What a file with this suffix, dot or no dot, is taken for."""
    suffix = suffix.lstrip(".").lower()
    if suffix in PICTURES:
        return "image"
    return "video" if suffix in FILMS else None


def is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def expand(path: str) -> list[str]:
    """`shard-{000..009}.tar`, `{train,more}.jsonl` and, of files here, `*.jsonl`, in order.

    Raises:
        SourceError: no such file, or braces that name too many.
    """
    if not is_url(path) and Path(path).exists():
        return [path]
    found = []
    for name in _unbraced(path):
        found += [name] if is_url(name) else _here(name)
        if len(found) > _MAX_PATHS:
            raise SourceError(f"{path} names more than {_MAX_PATHS:,} files")
    return found


def _unbraced(path: str) -> Iterator[str]:
    match = _BRACES.search(path)
    if match is None:
        yield path
        return
    before, after = path[: match.start()], path[match.end() :]
    for choice in _choices(match[1]):
        yield from _unbraced(f"{before}{choice}{after}")


def _choices(inside: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        yield from inside.split(",")
        return
    first, last = numbers.groups()
    if int(last) < int(first):
        raise SourceError(f"{{{inside}}} runs backwards")
    width = len(first) if first.startswith("0") else 0
    yield from (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))


def _here(name: str) -> list[str]:
    if Path(name).exists():
        return [name]
    found = sorted(glob.glob(name)) if glob.has_magic(name) else []
    if not found:
        raise SourceError(f"{name} does not exist")
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """Paths from the folder they share: what places are made of."""
    shared = commonpath([path.absolute().parent for path in paths])
    return [relpath(path.absolute(), shared) for path in paths]


@dataclass(frozen=True)
class Folder:
    """The files below `root`, and none elsewhere, be it by `..`, an absolute path or a link."""

    root: Path

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            Problem: outside the folder, an address, too large, or no plain file.
            Missing: not there.
        """
        path = self._find(name)
        if not path.is_file():
            raise Problem(f"{name} is no file") if path.exists() else Missing(f"{name} is missing")
        if path.stat().st_size > MAX_BYTES:
            raise Problem(f"{name} is larger than {MAX_BYTES:,} bytes")
        return path.read_bytes()

    def _find(self, name: str) -> Path:
        if is_url(name) or name.startswith("data:"):
            raise Problem(f"{name[:80]} is an address: only files are read")
        root = self.root.resolve()
        try:
            path = (root / name).resolve()
        except (ValueError, RuntimeError, OSError):  # a zero byte, a circle of links
            raise Problem(f"{name[:80]!r} is no path") from None
        if not path.is_relative_to(root):
            raise Problem(f"{name} lies outside {self.root}: `root` sets another folder")
        return path

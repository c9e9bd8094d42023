"""Tar files, here or far away, as places of members; and the order in which shards are read."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Self, TypeVar
from urllib.parse import urlsplit

from .document import Record
from .files import MAX_BYTES, is_url, short_names
from .order import permutation
from .problems import Missing, Problem, SourceError, bad
from .remote import fetch

_T = TypeVar("_T")
_R = TypeVar("_R")


class Shard:
    """An open tar file: where the bytes of each plain member lie. Links in it lead nowhere.

    It is closed once no record refers to it, and then a fetched one is gone.
    """

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name, self.damage = name, ""
        self.members = dict[str, tuple[int, int]]()
        self._file = file
        weakref.finalize(self, file.close)
        try:
            self._index()
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            self.damage = f"cut off or damaged after {len(self.members):,} files ({error})"

    def read(self, name: str) -> bytes:
        """Raises Missing or Problem."""
        if name not in self.members:
            raise Missing(f"{name} is not in the shard")
        at, size = self.members[name]
        if size > MAX_BYTES:
            raise Problem(f"{name} is larger than {MAX_BYTES:,} bytes")
        return os.pread(self._file.fileno(), size, at)

    def beside(self, name: str) -> Callable[[str], bytes]:
        """`read` for names as a member may write them: from its own folder, or in full."""
        folder = posixpath.dirname(name)

        def read(other: str) -> bytes:
            near = posixpath.normpath(posixpath.join(folder, other))
            return self.read(near if near in self.members else other)

        return read

    def _index(self) -> None:
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            end = -1
            for member in tar:
                if member.offset <= end:  # a size below zero leads back, round and round
                    raise tarfile.ReadError("headers lead backwards")
                end = member.offset
                if member.isreg() and not member.issparse():
                    name = posixpath.normpath(member.name)
                    self.members[name] = member.offset_data, member.size


@dataclass(frozen=True)
class Shards:
    """Addresses of shards.

    `mix` of them are open at a time and their records shuffled together. Fetched ones are kept in
    the folder `cache`, for later epochs and other processes, or else only until they are read.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    mix: int
    cache: Path | None

    @classmethod
    def open(cls, paths: Sequence[str], mix: int = 4, cache: str | None = None) -> Self:
        for path in paths:
            if not urlsplit(path).path.endswith(".tar"):
                raise SourceError(f"{path} is no .tar: shards are read uncompressed")
        if mix < 1:
            raise SourceError(f"mix is {mix}, and must be at least 1")
        names = short_names([Path(urlsplit(path).path if is_url(path) else path) for path in paths])
        return cls(tuple(paths), tuple(names), mix, Path(cache) if cache else None)

    def load(self, at: int) -> Shard:
        """Raises Missing; SourceError where a server cannot be reached; OSError, ours, as well."""
        path = self.paths[at]
        if not is_url(path):
            return Shard(self.names[at], _open(path))
        if self.cache is not None:
            return Shard(self.names[at], self._cached(path, self.cache).open("rb"))
        file = tempfile.TemporaryFile(prefix="flamingo-")
        try:
            fetch(path, file)
        except BaseException:
            file.close()
            raise
        return Shard(self.names[at], file)

    def _cached(self, url: str, folder: Path) -> Path:
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        kept = folder / f"{digest}.tar"
        if not kept.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                try:
                    fetch(url, file)
                except BaseException:
                    os.unlink(file.name)
                    raise
            os.replace(file.name, kept)
        return kept


@dataclass(frozen=True, eq=False)
class ShardSource(ABC):
    """A `Source` of tar files. Passing over records opens shards, to count them, and no media."""

    shards: Shards

    @abstractmethod
    def records(self, shard: Shard) -> list[Record]:
        """In the order of the file; opens nothing."""

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Record]:
        order, mix = permutation(len(self.shards.paths), seed, epoch), self.shards.mix
        groups = [order[at : at + mix].tolist() for at in range(0, len(order), mix)]
        for number, records in enumerate(_one_ahead(self._of_group, groups)):
            if start < len(records):
                mixed = permutation(len(records), seed, epoch, 1 + number)
                yield from (records[at] for at in mixed[start:])
            start = max(0, start - len(records))

    def _of_group(self, group: Sequence[int]) -> list[Record]:
        return [record for number in group for record in self._of_shard(number)]

    def _of_shard(self, number: int) -> list[Record]:
        name = self.shards.names[number]
        try:
            shard = self.shards.load(number)
        except Missing as problem:
            return [bad(name, str(problem))]
        return self.records(shard) + ([bad(name, shard.damage)] if shard.damage else [])


def _one_ahead(load: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """`map`, with the next call under way while what one gave is used."""
    coming = deque[Future[_R]]()
    for item in items:
        coming.append(_in_thread(load, item))
        if len(coming) > 1:
            yield coming.popleft().result()
    yield from (future.result() for future in coming)


def _in_thread(load: Callable[[_T], _R], item: _T) -> Future[_R]:
    """A daemon: a program that ends does not wait for a download."""
    future = Future[_R]()

    def run() -> None:
        try:
            future.set_result(load(item))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise Missing(f"it cannot be opened: {error.strerror}") from None

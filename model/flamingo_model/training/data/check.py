"""Reads a whole source as training would, so that what is wrong is known before hours are spent.

Records are read here, their media decoded in processes that may crash, hang or run out of memory:
that costs one record and a fresh process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from multiprocessing.context import BaseContext

from pebble import ProcessExpired, ProcessPool

from .document import BadRecord, Document, MediaPart, Record, Source
from .examine import Finding, examine, open_tokenizer, prepare
from .report import Report, Tally

_CHUNK = 16  # documents handed over at once, fewer where they are large
_CHUNK_BYTES = 8 * 2**20
_START_S = 60.0  # what a process may take to start on a machine that is busy

Examine = Callable[[Sequence[Document], str | None], list[Finding]]


@dataclass(frozen=True)
class Checking:
    """How to check: `limit` records at most, in `jobs` processes, each record in `timeout_s`.

    `tokenizer` is a `tokenizer.json`, to count tokens beside words. `limit_memory` is called in
    each process once the decoders are loaded; `context` says how processes start.
    """

    limit: int | None = None
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    timeout_s: float = 60.0
    tokenizer: str | None = None
    limit_memory: Callable[[], None] | None = None
    context: BaseContext = field(default_factory=lambda: get_context("spawn"))
    examine: Examine = examine


def check(source: Source, how: Checking, advance: Callable[[], None] = lambda: None) -> Report:
    """All that can be said of a source; `advance` is called after each record.

    Where `limit` is below the number of records, those are a sample: the first of epoch 0.

    Raises:
        SourceError: a shard cannot be reached, or the tokenizer not be read.
    """
    if how.tokenizer is not None:
        open_tokenizer(how.tokenizer)
    tally, workers = Tally(), _Workers(how)
    try:
        for finding in _findings(islice(source.epoch(0, 0), how.limit), workers):
            tally.add(finding)
            advance()
    finally:
        workers.close()
    return tally.report(with_tokens=how.tokenizer is not None)


def _findings(records: Iterable[Record], workers: _Workers) -> Iterator[Finding]:
    chunk, size = list[Document](), 0
    for record in records:
        try:
            document = record.read()
        except BadRecord as error:
            yield Finding(record.place, str(error).removeprefix(f"{record.place}: "))
            continue
        chunk.append(document)
        size += sum(len(part.data) for part in document.parts if isinstance(part, MediaPart))
        if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
            yield from workers.swap(chunk)
            chunk, size = [], 0
    if chunk:
        yield from workers.swap(chunk)
    yield from workers.rest()


class _Workers:
    """Processes that examine chunks of documents; a chunk that fails is examined one by one."""

    def __init__(self, how: Checking) -> None:
        self._how, self._pool = how, _new_pool(how)
        self._under_way = deque[tuple[list[Document], Future[list[Finding]]]]()

    def swap(self, chunk: list[Document]) -> Iterator[Finding]:
        """Hands a chunk in, and out what is found in the eldest if enough are under way."""
        self._under_way.append((chunk, self._start(chunk)))
        if len(self._under_way) > 2 * self._how.jobs:
            yield from self._finish(*self._under_way.popleft())

    def rest(self) -> Iterator[Finding]:
        while self._under_way:
            yield from self._finish(*self._under_way.popleft())

    def close(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _start(self, chunk: list[Document]) -> Future[list[Finding]]:
        if not self._pool.active:  # pebble gives a pool up when a worker dies between tasks
            for _, lost in self._under_way:
                lost.cancel()  # or it would stay open for ever
            self.close()
            self._pool = _new_pool(self._how)
        args = (chunk, self._how.tokenizer)
        future: Future[list[Finding]] = self._pool.schedule(
            self._how.examine, args, timeout=self._how.timeout_s
        )
        return future

    def _finish(self, chunk: list[Document], future: Future[list[Finding]]) -> Iterator[Finding]:
        try:
            yield from future.result(2 * self._how.timeout_s + _START_S)
        except (Exception, CancelledError) as error:
            if len(chunk) == 1:
                yield Finding(chunk[0].place, _said(error, self._how.timeout_s))
                return
            for document in chunk:
                yield from self._finish([document], self._start([document]))


def _new_pool(how: Checking) -> ProcessPool:
    return ProcessPool(
        how.jobs, initializer=prepare, initargs=(how.limit_memory,), context=how.context
    )


def _said(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"its pictures and films take longer than {timeout_s:g} s to decode"
    if isinstance(error, ProcessExpired | CancelledError | MemoryError):
        return "its pictures and films crash the decoder, or need too much memory"
    return f"it cannot be examined: {type(error).__name__}: {error}"

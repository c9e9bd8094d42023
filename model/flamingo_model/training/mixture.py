"""Datasets → the documents of each step, the same on any number of processes.

A step takes the next records of each dataset that has its turn; every process passes all of them
and reads its share. A record that cannot be read is left out, counted and told of. Where a stream
stands is two numbers, so that a run goes on exactly where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from .config import DatasetConfig, TrainingError
from .data.document import BadRecord, Document, Record, Source
from .distributed import World

T = TypeVar("T")
Prepare = Callable[[Document, DatasetConfig, np.random.Generator], T]
"""What a stage makes of a document, with the numbers drawn for it alone; raises BadRecord."""
logger = logging.getLogger("flamingo_model.training")
ENOUGH = 100  # records: of fewer, each counts as one of so many
SHOWN = 20  # bad records that are named


class TooManyBad(TrainingError):
    """More records than `max_bad_share` could not be read."""


@dataclass(frozen=True)
class Position:
    """The next record is the `start`-th of an epoch; `seen` and `bad` count what was read."""

    epoch: int = 0
    start: int = 0
    seen: int = 0
    bad: int = 0


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """This process's share of a dataset's batch."""

    dataset: int
    items: list[T]
    bad: list[str]
    after: Position


class Stream:
    """The records of a dataset, epoch after epoch."""

    def __init__(self, source: Source, config: DatasetConfig, seed: int) -> None:
        self.source, self.config, self.seed = source, config, seed
        self.seek(Position())

    def seek(self, position: Position) -> None:
        self.position = position
        self.records = self.endless(position.epoch, position.start)

    def endless(self, epoch: int, start: int) -> Iterator[tuple[int, int, Record]]:
        while True:
            number = start - 1
            for number, record in enumerate(self.source.epoch(self.seed, epoch, start), start):
                yield epoch, number, record
            if number < 0:
                raise BadRecord(f"{self.config.path}: no records")
            epoch, start = epoch + 1, 0

    def take(self, num: int) -> list[Record]:
        taken = [next(self.records) for _ in range(num)]
        epoch, number, _ = taken[-1]
        before = self.position
        self.position = Position(epoch, number + 1, before.seen + num, before.bad)
        return [record for *_, record in taken]


class Mixture(Generic[T]):
    """Draws, perhaps a step ahead on other threads; `position` is that of what was handed out."""

    def __init__(
        self,
        streams: Sequence[Stream],
        prepare: Prepare[T],
        world: World,
        seed: int,
        max_bad_share: float,
        round_robin: bool = False,
        workers: int = 0,
    ) -> None:
        self.streams, self.prepare, self.world, self.seed = streams, prepare, world, seed
        self.max_bad_share, self.round_robin = max_bad_share, round_robin
        self.readers = ThreadPoolExecutor(workers) if workers else None
        self.ahead = ThreadPoolExecutor(1) if workers else None
        self.next: Future[list[Drawn[T]]] | None = None
        self.positions = [Position() for _ in streams]
        self.num_shown = 0

    def position(self) -> list[dict[str, int]]:
        return [vars(position) for position in self.positions]

    def seek(self, positions: Sequence[Mapping[str, int]]) -> None:
        self.positions = [Position(**position) for position in positions]
        for stream, position in zip(self.streams, self.positions, strict=True):
            stream.seek(position)

    def draw(self, step: int) -> list[Drawn[T]]:
        """Raises TooManyBad."""
        drawn = self.next.result() if self.next else self.read(step)
        self.next = self.ahead.submit(self.read, step + 1) if self.ahead else None
        for found in drawn:
            self.positions[found.dataset] = self.counted(found)
        return drawn

    def read(self, step: int) -> list[Drawn[T]]:
        turns = range(len(self.streams))
        return [
            self.read_one(step, dataset)
            for dataset in ([turns[step % len(turns)]] if self.round_robin else turns)
        ]

    def read_one(self, step: int, dataset: int) -> Drawn[T]:
        stream = self.streams[dataset]
        share = self.world.share(stream.take(stream.config.batch))
        place = [(self.seed, step, dataset, number) for number, _ in share]
        records = [record for _, record in share]
        run = self.readers.map if self.readers else map
        items, bad = list[T](), list[str]()
        for found in run(lambda record, key: self.attempt(record, key, stream), records, place):
            if isinstance(found, BadRecord):
                bad.append(str(found))
            else:
                items.append(found)
        return Drawn(dataset, items, bad, stream.position)

    def attempt(self, record: Record, key: Sequence[int], stream: Stream) -> T | BadRecord:
        try:
            return self.prepare(record.read(), stream.config, np.random.default_rng(key))
        except BadRecord as error:
            return error

    def counted(self, drawn: Drawn[T]) -> Position:
        """The position after a draw, with all processes' bad records counted in."""
        for message in drawn.bad:
            self.num_shown += 1
            if self.num_shown <= SHOWN:
                logger.warning("skipped %s", message)
        before, after = self.positions[drawn.dataset], drawn.after
        bad = before.bad + round(self.world.sum([len(drawn.bad)])[0])
        if bad > self.max_bad_share * max(after.seen, ENOUGH):
            name = self.streams[drawn.dataset].config.label
            raise TooManyBad(
                f"{name}: {bad} of {after.seen} records are bad, more than the share of "
                f"{self.max_bad_share:g} that train.max_bad_share allows; "
                f"see `flamingo data check {self.streams[drawn.dataset].config.path}`"
            )
        return Position(after.epoch, after.start, after.seen, bad)

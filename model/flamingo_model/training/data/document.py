"""One training document: pictures, films and text in reading order, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class TextPart:
    """`learned` is False for text that is read only: a question, an instruction."""

    text: str
    learned: bool = True


@dataclass(frozen=True)
class MediaPart:
    """A picture's or film's file, still encoded."""

    kind: Literal["image", "video"]
    data: bytes


Part = TextPart | MediaPart


@dataclass(frozen=True)
class Document:
    parts: tuple[Part, ...]
    place: str  # "train.jsonl:17"


class BadRecord(ValueError):
    """A record that cannot be learned from; the message starts with its place."""


@dataclass(frozen=True)
class Record:
    """A document not yet read: ranks and resumed runs pass over records without opening them."""

    place: str
    read: Callable[[], Document]  # raises BadRecord


class Source(Protocol):
    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[Record]:
        """The records of one epoch in its own order, from the `start`-th; the same arguments give
        the same order."""
        ...

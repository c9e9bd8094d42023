"""WebDataset shards: files of one name and several suffixes are one record."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from .document import MediaPart, Part, Record
from .files import media_kind
from .interleaved import interleaved_parts
from .mmc4 import mmc4_parts
from .problems import Missing, Problem, record
from .rows import json_row
from .shards import Shard, Shards, ShardSource
from .table import prompted, said_parts

TEXTS = ("txt", "caption")


@dataclass(frozen=True, eq=False)
class WebDatasetSource(ShardSource):
    """`.jpg`, `.png`, `.webp` or `.mp4` (and their like) with `.txt`, else with `.json`.

    The JSON is a row of a table (`caption`, or `question` and `answer`), or a whole document of
    interleaved parts or of MMC4, whose pictures are in the shard. `prompt` is as for tables.
    """

    prompt: str | None

    @classmethod
    def open(
        cls,
        paths: Sequence[str],
        *,
        mix: int = 4,
        cache: str | None = None,
        prompt: str | None = None,
    ) -> Self:
        return cls(Shards.open(paths, mix, cache), prompt)

    def records(self, shard: Shard) -> list[Record]:
        return [self._record(shard, key, sample) for key, sample in samples(shard.members).items()]

    def _record(self, shard: Shard, key: str, sample: Mapping[str, str]) -> Record:
        return record(f"{shard.name}:{key}", lambda: self._parts(shard, sample))

    def _parts(self, shard: Shard, sample: Mapping[str, str]) -> Iterator[Part]:
        said = next((sample[suffix] for suffix in TEXTS if suffix in sample), None)
        row = json_row(shard.read(sample["json"])) if not said and "json" in sample else {}
        if "parts" in row:
            return interleaved_parts(row, shard.beside(sample["json"]))
        if "text_list" in row:
            return mmc4_parts(row, shard.beside(sample["json"]))
        return self._pair(shard, sample, said, row)

    def _pair(
        self, shard: Shard, sample: Mapping[str, str], said: str | None, row: dict[str, Any]
    ) -> Iterator[Part]:
        media = [(media_kind(suffix.rpartition(".")[2]), name) for suffix, name in sample.items()]
        found = [(kind, name) for kind, name in media if kind]
        if len(found) != 1:
            names = ", ".join(name for _, name in found)
            raise Problem(f"two pictures or films: {names}") if found else Missing("no picture")
        ((kind, name),) = found
        yield MediaPart(kind, shard.read(name))
        if said:
            yield from prompted(self.prompt or "", _text(shard.read(said)))
        elif row:
            yield from said_parts(row, self.prompt)
        else:
            raise Problem("no .txt and no .json beside the picture or film")


def samples(names: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Names by their key, up to the first dot, and then by the suffix after it.

    Files of no use here (`.cls`, `.npy`) make no record.
    """
    found = dict[str, dict[str, str]]()
    for name in names:
        folder, file = posixpath.split(name)
        stem, _, suffix = file.partition(".")
        suffix = suffix.lower()
        if stem and (suffix in (*TEXTS, "json") or media_kind(suffix.rpartition(".")[2])):
            found.setdefault(posixpath.join(folder, stem), {})[suffix] = name
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problem("the text is not UTF-8") from None

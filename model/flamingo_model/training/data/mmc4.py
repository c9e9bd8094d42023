"""Multimodal C4: web pages as sentences, and pictures matched to them (Zhu et al. 2023)."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .document import MediaPart, Part, Record, TextPart
from .interleaved import Read
from .problems import Missing, Problem, SourceError, kind_of, record, text_of
from .rows import RowFile, Rows, RowSource, json_row, line_spans
from .shards import Shard, Shards, ShardSource


@dataclass(frozen=True)
class Mmc4Options:
    """Pictures less similar to their sentence than `min_similarity` are left out; where
    `drop_missing`, so are those that are not there, as a page's often are after some years."""

    min_similarity: float | None = None
    drop_missing: bool = False


_AS_IS = Mmc4Options()


@dataclass(frozen=True, eq=False)
class Mmc4Source(RowSource):
    """JSONL with `text_list` and `image_info`; pictures lie beside it or at `root`."""

    options: Mmc4Options

    def parts(self, file: RowFile, row: int) -> Iterator[Part]:
        return mmc4_parts(json_row(file.read(row)), self.folder(file).read, self.options)


@dataclass(frozen=True, eq=False)
class Mmc4Shards(ShardSource):
    """Tar files of such documents, each a `.json`; pictures are in it, or in the same shard."""

    options: Mmc4Options

    def records(self, shard: Shard) -> list[Record]:
        names = [name for name in shard.members if name.lower().endswith(".json")]
        return [self._record(shard, name) for name in names]

    def _record(self, shard: Shard, name: str) -> Record:
        place = f"{shard.name}:{posixpath.splitext(name)[0]}"
        return record(
            place, lambda: mmc4_parts(json_row(shard.read(name)), shard.beside(name), self.options)
        )


def open_mmc4(
    paths: Sequence[str],
    *,
    root: str | None = None,
    min_similarity: float | None = None,
    drop_missing: bool = False,
    mix: int = 4,
    cache: str | None = None,
) -> Mmc4Source | Mmc4Shards:
    """`root` is for JSONL; `mix` and `cache` are for shards, as `Shards` has them."""
    options = Mmc4Options(min_similarity, drop_missing)
    if any(path.endswith(".tar") for path in paths):
        if root:
            raise SourceError("pictures of shards lie in the shards: `root` is for JSONL")
        return Mmc4Shards(Shards.open(paths, mix, cache), options)
    return Mmc4Source(Rows(paths, line_spans), Path(root) if root else None, options)


def mmc4_parts(row: Mapping[str, Any], read: Read, options: Mmc4Options = _AS_IS) -> Iterator[Part]:
    """Each picture stands right before the sentence it is matched to, in the order of the list.

    Sentences are joined by a blank, and by none where pictures come between, as in OpenFlamingo.
    Raises Problem.
    """
    sentences = _list(row, "text_list")
    pictures = _by_sentence(_list(row, "image_info"), len(sentences), read, options)
    run = list[str]()
    for at, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise Problem(f"text_list[{at}] is {kind_of(sentence)}, not text")
        if at in pictures and run:
            yield TextPart(" ".join(run))
            run = []
        yield from pictures.get(at, ())
        run += [sentence.strip()] if sentence.strip() else []
    if run:
        yield TextPart(" ".join(run))


def _by_sentence(
    infos: list[Any], num_sentences: int, read: Read, options: Mmc4Options
) -> dict[int, list[MediaPart]]:
    found = dict[int, list[MediaPart]]()
    for number, info in enumerate(infos):
        try:
            at = _matched(info, num_sentences)
            if _is_similar(info, options.min_similarity):
                picture = MediaPart("image", _picture(info, read))
                found.setdefault(at, []).append(picture)
        except Missing as problem:
            if not options.drop_missing:
                raise Missing(f"image_info[{number}]: {problem}") from None
        except Problem as problem:
            raise Problem(f"image_info[{number}]: {problem}") from None
    return found


def _matched(info: object, num_sentences: int) -> int:
    at = info.get("matched_text_index") if isinstance(info, dict) else None
    if not isinstance(at, int) or isinstance(at, bool) or not 0 <= at < num_sentences:
        raise Problem(f"'matched_text_index' names none of the {num_sentences} sentences")
    return at


def _is_similar(info: Mapping[str, Any], minimum: float | None) -> bool:
    if minimum is None:
        return True
    similarity = info.get("matched_sim")
    if not isinstance(similarity, int | float):
        raise Problem(f"'matched_sim' is {kind_of(similarity)}, not a number")
    return similarity >= minimum


def _picture(info: Mapping[str, Any], read: Read) -> bytes:
    if "image_base64" not in info:
        return read(text_of(info, "image_name"))
    try:
        return base64.b64decode(text_of(info, "image_base64"), validate=True)
    except ValueError as error:
        if isinstance(error, Problem):
            raise
        raise Problem("'image_base64' is not base64") from None


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list):
        raise Problem(f"{name!r} is {kind_of(value)}, not a list")
    return value

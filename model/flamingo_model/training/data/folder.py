"""Folders of pictures: a text beside each (`a.jpg`, `a.txt`), or a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .document import MediaPart, Part, Record
from .files import Folder, media_kind
from .order import Listed
from .problems import Missing, Problem, SourceError, record
from .table import prompted

_NOT_TEXTS = ("readme", "license", "licence")


@dataclass(frozen=True)
class Pair:
    """Names from the folder's root; "" is what is missing. `label` is the class, if classes."""

    medium: str
    text: str = ""
    label: str = ""


@dataclass(frozen=True, eq=False)
class FolderSource(Listed):
    """Pictures and films with their texts, at any depth.

    Where any text file lies there, every picture has to have one; else the name of the folder that
    a picture lies in is its text, `golden_retriever` as "golden retriever". `prompt` is read, not
    learned, before it.
    """

    folder: Folder
    pairs: Sequence[Pair]
    prompt: str

    @classmethod
    def open(cls, paths: Sequence[str], *, prompt: str = "") -> Self:
        if len(paths) != 1 or not Path(paths[0]).is_dir():
            raise SourceError(f"{paths[0]} is no folder")
        return cls(Folder(Path(paths[0])), find_pairs(Path(paths[0])), prompt)

    def __len__(self) -> int:
        return len(self.pairs)

    def record(self, at: int) -> Record:
        pair = self.pairs[at]
        return record(pair.medium or pair.text, lambda: self._parts(pair))

    def _parts(self, pair: Pair) -> Iterator[Part]:
        if not pair.medium:
            raise Missing("no picture or film beside the text")
        kind = media_kind(Path(pair.medium).suffix)
        assert kind
        yield MediaPart(kind, self.folder.read(pair.medium))
        yield from prompted(self.prompt, pair.label or self._text(pair))

    def _text(self, pair: Pair) -> str:
        if not pair.text:
            raise Problem("no .txt of the same name beside it, nor a folder that names it")
        try:
            return self.folder.read(pair.text).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Problem(f"{pair.text} is not UTF-8") from None


def find_pairs(root: Path) -> list[Pair]:
    """In the order of names. Raises SourceError where there is neither text nor class."""
    media, texts = _walk(root)
    if texts:
        stems = {os.path.splitext(name)[0] for name in media}
        pairs = [Pair(name, texts.get(os.path.splitext(name)[0], "")) for name in media]
        pairs += [Pair("", text) for stem, text in texts.items() if stem not in stems]
    else:
        pairs = [Pair(name, label=_label(name)) for name in media]
    if not any(pair.text or pair.label for pair in pairs):
        raise SourceError(f"{root}: no pictures with texts beside them, or in folders by class")
    return sorted(pairs, key=lambda pair: pair.medium or pair.text)


def _walk(root: Path) -> tuple[list[str], dict[str, str]]:
    """Names of pictures and films; names of texts, by what stands before `.txt`."""
    media, texts = [], {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            name = os.path.relpath(os.path.join(folder, file), root)
            stem, suffix = os.path.splitext(file)
            if file.startswith("."):
                continue
            if media_kind(suffix):
                media.append(name)
            elif suffix.lower() == ".txt" and stem.lower() not in _NOT_TEXTS:
                texts[os.path.splitext(name)[0]] = name
    return media, texts


def _label(name: str) -> str:
    return os.path.basename(os.path.dirname(name)).replace("_", " ").strip()

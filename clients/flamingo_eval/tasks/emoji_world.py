"""The emoji world's exam: pictures and films of known and held-out emoji, with all that is known of
them. `python -m flamingo_model.training.emoji.exam` makes the file.

`index.json` is `{"version": 2, "pictures": [...], "made_up_words", "binding_templates",
"hidden_tasks"}`; the pictures lie beside it. Made-up words are of no training document.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from flamingo_eval.examples import Form, Media
from flamingo_eval.tasks.base import require

NAME = "emoji_world.zip"
VERSION = 2
PREFIX = 3  # words of one episode differ in their first letters, as in training


@dataclass(frozen=True)
class Asking:
    """A question about a picture: `text` up to the answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Picture:
    """`kind` is single, count, pair, film or digit; `split` known or held_out."""

    media: Media
    kind: str
    split: str
    objects: tuple[str, ...]
    families: tuple[str, ...]
    background: str | None
    count: str | None
    caption: str
    questions: tuple[Asking, ...]


@dataclass(frozen=True)
class World:
    """`forms` are the ways a made-up word is taught, `hidden` those of tasks nobody names."""

    pictures: tuple[Picture, ...]
    words: tuple[str, ...]
    forms: tuple[Form, ...]
    hidden: Mapping[str, Form]

    def of(self, *kinds: str, split: str | None = None) -> list[Picture]:
        return [p for p in self.pictures if p.kind in kinds and (split is None or p.split == split)]

    def some_words(self, num: int, dice: random.Random) -> list[str]:
        """Distinct from their first letters on. Raises ValueError if there are too few."""
        by_start = {word[:PREFIX]: word for word in dice.sample(self.words, len(self.words))}
        return dice.sample(list(by_start.values()), num)


def load_world(folder: Path) -> World:
    """Of the zip in `folder`, or else the one that ships. Raises MissingFiles."""
    path = folder / NAME
    path = path if path.exists() else Path(__file__).parents[1] / NAME
    require("emoji", path)
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: Path, changed: int) -> World:
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read("index.json"))
        if index.get("version") != VERSION:
            raise ValueError(f"{path} is of version {index.get('version')}, not {VERSION}: make it")
        pictures = tuple(_picture(row, archive.read(row["file"])) for row in index["pictures"])
    return World(
        pictures,
        tuple(index["made_up_words"]),
        tuple(_form(pair) for pair in index["binding_templates"]),
        {name: _hidden(value) for name, value in index["hidden_tasks"].items()},
    )


def _picture(row: Mapping[str, Any], data: bytes) -> Picture:
    is_film = row["kind"] == "film"
    rate, frames = _frames(data) if is_film else (None, None)
    return Picture(
        Media(row["file"], lambda: data, is_film, rate, frames),
        row["kind"],
        row["split"],
        tuple(row.get("objects") or ()),
        tuple(row.get("families") or ()),
        row.get("background"),
        row.get("count"),
        row.get("caption") or "",
        tuple(
            Asking(q["kind"], q["question"].strip(), q["answer"].strip())
            for q in row.get("questions") or ()
        ),
    )


def _frames(data: bytes) -> tuple[float, int]:
    """Frames a second, and how many: with these the server takes every frame once."""
    with Image.open(io.BytesIO(data)) as film:
        film.load()  # the duration is that of the frame just read
        return 1000 / (film.info.get("duration") or 100), getattr(film, "n_frames", 1)


def _form(pair: Sequence[str]) -> Form:
    """["This is a", " {}."] → "This is a {answer}." """
    before, after = pair
    return Form.template(before + after.replace("{}", "{answer}"))


def _hidden(value: Any) -> Form:
    """As a template has it; what says no words of its own begins with "Output:"."""
    is_pair = isinstance(value, list) and len(value) == 2 and "{}" in value[1]
    return _form(value) if is_pair else _form(("Output:", " {}"))

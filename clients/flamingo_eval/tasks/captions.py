"""COCO and Flickr30k captions, in Karpathy's splits (Karpathy & Fei-Fei 2015).

`dataset_coco.json` and `dataset_flickr30k.json`: `{"images": [{"filename", "filepath" (COCO's),
"split", "sentences": [{"raw"}]}]}`. Shots come from split train, queries from split test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flamingo_eval.examples import CAPTION, Data, Example, Media
from flamingo_eval.scoring import CIDER
from flamingo_eval.tasks.base import FewShot, Source, Task, require

Place = Callable[[dict[str, Any]], Path]


def load_coco(folder: Path) -> Source:
    root = folder / "coco"
    return _load("coco", root / "dataset_coco.json", lambda row: root / row["filepath"], root)


def load_flickr30k(folder: Path) -> Source:
    root = folder / "flickr30k"
    pictures = root / "flickr30k-images"
    return _load("flickr30k", root / "dataset_flickr30k.json", lambda row: pictures, pictures)


def _load(task: str, listing: Path, place: Place, pictures: Path) -> Source:
    require(task, listing, pictures)
    rows = json.loads(listing.read_text(encoding="utf-8"))["images"]
    support = [_example(row, place) for row in rows if row["split"] == "train"]
    queries = [_example(row, place) for row in rows if row["split"] == "test"]
    require(task, *{place(row) for row in rows if row["split"] in ("train", "test")})
    return FewShot(Data(support, queries), CAPTION)


def _example(row: dict[str, Any], place: Place) -> Example:
    captions = tuple(sentence["raw"].strip() for sentence in row["sentences"])
    return Example(Media.of(place(row) / row["filename"]), captions[0], captions)


TASKS = (
    Task("coco", CIDER, load_coco, num_beams=3),
    Task("flickr30k", CIDER, load_flickr30k, num=1000, num_beams=3),
)

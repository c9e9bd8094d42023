"""Closed-ended: Hateful Memes by ROC-AUC, ImageNet's thousand classes by top-1.

- Hateful Memes: `train.jsonl` and `dev_seen.jsonl`, a line `{"img": "img/1.png", "label", "text"}`.
- ImageNet: folders of pictures by class, `train/n01440764/*.JPEG` and `val/...`, and the names of
  the classes in `LOC_synset_mapping.txt`, of which the first name is taken.
"""

from __future__ import annotations

import json
from pathlib import Path

from flamingo_eval.examples import CLASSIFY, MEMES, Data, Example, Media
from flamingo_eval.scoring import ROC_AUC, TOP1
from flamingo_eval.tasks.base import FewShot, Source, Task, require


def load_hateful_memes(folder: Path) -> Source:
    root = folder / "hateful_memes"
    files = [root / "train.jsonl", root / "dev_seen.jsonl"]
    require("hateful_memes", *files, root / "img")
    support, queries = ([_meme(root, line) for line in _lines(file)] for file in files)
    return FewShot(Data(support, queries, ("no", "yes")), MEMES)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _meme(root: Path, line: str) -> Example:
    row = json.loads(line)
    answer = "yes" if row["label"] else "no"
    return Example(Media.of(root / row["img"]), answer, (answer,), {"text": row["text"]})


def load_imagenet(folder: Path) -> Source:
    root = folder / "imagenet"
    listing = root / "LOC_synset_mapping.txt"
    require("imagenet", listing, root / "train", root / "val")
    names = dict(line.split(maxsplit=1) for line in _lines(listing))
    first = {wnid: name.split(",")[0].strip() for wnid, name in names.items()}
    support, queries = (_by_class(root / split, first) for split in ("train", "val"))
    return FewShot(Data(support, queries, tuple(dict.fromkeys(first.values()))), CLASSIFY)


def _by_class(root: Path, names: dict[str, str]) -> list[Example]:
    return [
        Example(Media.of(path), name, (name,))
        for wnid, name in names.items()
        for path in sorted((root / wnid).glob("*.JPEG"))
    ]


TASKS = (
    Task("hateful_memes", ROC_AUC, load_hateful_memes),
    Task("imagenet", TOP1, load_imagenet, shots=(0, 4, 8, 16)),
)

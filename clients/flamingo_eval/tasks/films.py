"""Questions about films: MSVD-QA and NextQA, shots from train, queries from test, by exact match.

- MSVD-QA: `{split}_qa.json`, `[{"question", "answer", "video_id"}]`, and `youtube_mapping.txt`, a
  line `NAME vid1`; the films as `videos/NAME.mp4` (MSVD gives AVI: convert it first).
- NextQA, open-ended: `train.csv` and `test.csv` with columns video, question, answer, and perhaps
  additional_ref_answer; `map_vid_vidorID.json`; the films as `videos/VIDOR_ID.mp4`. What is
  published of it is WUPS, which lets similar words pass: an exact match is stricter.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from flamingo_eval.examples import VQA, Data, Example, Media
from flamingo_eval.scoring import EXACT
from flamingo_eval.tasks.base import FewShot, Source, Task, require

SPLITS = ("train", "test")


def load_msvdqa(folder: Path) -> Source:
    root = folder / "msvd_qa"
    listing = root / "youtube_mapping.txt"
    files = [root / f"{split}_qa.json" for split in SPLITS]
    require("msvdqa", *files, listing, root / "videos")
    pairs = (line.split() for line in listing.read_text(encoding="utf-8").splitlines() if line)
    names = {number: name for name, number in pairs}
    support, queries = (
        [
            _example(root / "videos" / f"{names[_number(row)]}.mp4", row)
            for row in json.loads(file.read_text(encoding="utf-8"))
        ]
        for file in files
    )
    return FewShot(Data(support, queries), VQA)


def load_nextqa(folder: Path) -> Source:
    root = folder / "nextqa"
    files, listing = [root / f"{split}.csv" for split in SPLITS], root / "map_vid_vidorID.json"
    require("nextqa", *files, listing, root / "videos")
    places = json.loads(listing.read_text(encoding="utf-8"))
    support, queries = (
        [_example(root / "videos" / f"{places[row['video']]}.mp4", row) for row in _rows(file)]
        for file in files
    )
    return FewShot(Data(support, queries), VQA)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _number(row: dict[str, str]) -> str:
    return f"vid{row['video_id']}"


def _example(path: Path, row: dict[str, str]) -> Example:
    film = Media(str(path), path.read_bytes, is_film=True)
    others = tuple(filter(None, [row.get("additional_ref_answer")]))
    return Example(film, row["answer"], (row["answer"], *others), {"question": row["question"]})


TASKS = (
    Task("msvdqa", EXACT, load_msvdqa, max_tokens=5, num_beams=3),
    Task("nextqa", EXACT, load_nextqa, max_tokens=10, num_beams=3),
)

"""Questions about pictures: VQAv2, OK-VQA, VizWiz and TextVQA, shots from train, queries from val.

- VQAv2 and OK-VQA: questions and annotations in files of their own, COCO's pictures of 2014.
  OK-VQA's own answers are stemmed; OpenFlamingo stems what the model says, which is not done here.
- VizWiz: `[{"image", "question", "answers": [{"answer"}]}]`.
- TextVQA: `{"data": [{"image_id", "question", "answers": [text]}]}`, all pictures in train_images.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from flamingo_eval.examples import VQA, Data, Example, Media
from flamingo_eval.scoring import VQA_ACCURACY
from flamingo_eval.tasks.base import FewShot, Source, Task, require


def load_vqav2(folder: Path) -> Source:
    names = ("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json")
    return _coco_questions("vqav2", folder, *names)


def load_okvqa(folder: Path) -> Source:
    names = ("OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json")
    return _coco_questions("okvqa", folder, *names)


def _coco_questions(task: str, folder: Path, questions: str, annotations: str) -> Source:
    splits = ("train2014", "val2014")
    asked = [folder / task / questions.format(split) for split in splits]
    answered = [folder / task / annotations.format(split) for split in splits]
    pictures = [folder / "coco" / split for split in splits]
    require(task, *asked, *answered, *pictures)
    support, queries = map(_coco_split, asked, answered, pictures)
    return FewShot(Data(support, queries), VQA)


def _coco_split(asked: Path, answered: Path, pictures: Path) -> list[Example]:
    rows = _read(answered)["annotations"]
    answers = {row["question_id"]: _texts(row["answers"]) for row in rows}
    return [
        _example(
            pictures / f"COCO_{pictures.name}_{row['image_id']:012d}.jpg",
            row["question"],
            answers[row["question_id"]],
        )
        for row in _read(asked)["questions"]
    ]


def load_vizwiz(folder: Path) -> Source:
    root = folder / "vizwiz"
    require("vizwiz", *(root / name for name in ("train.json", "val.json", "train", "val")))
    support, queries = (
        [
            _example(root / split / row["image"], row["question"], _texts(row["answers"]))
            for row in _read(root / f"{split}.json")
        ]
        for split in ("train", "val")
    )
    return FewShot(Data(support, queries), VQA)


def load_textvqa(folder: Path) -> Source:
    root, pictures = folder / "textvqa", folder / "textvqa" / "train_images"
    files = [root / f"TextVQA_0.5.1_{split}.json" for split in ("train", "val")]
    require("textvqa", *files, pictures)
    support, queries = (
        [
            _example(pictures / f"{row['image_id']}.jpg", row["question"], row["answers"])
            for row in _read(file)["data"]
        ]
        for file in files
    )
    return FewShot(Data(support, queries), VQA)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _texts(answers: list[dict[str, str]]) -> list[str]:
    return [one["answer"] for one in answers]


def _example(picture: Path, question: str, answers: list[str]) -> Example:
    """As a shot it gives the answer of most people, the first of them if they are at odds."""
    [(most, _)] = Counter(answers).most_common(1)
    return Example(Media.of(picture), most, tuple(answers), {"question": question})


TASKS = (
    Task("vqav2", VQA_ACCURACY, load_vqav2, max_tokens=5, num_beams=3),
    Task("okvqa", VQA_ACCURACY, load_okvqa, max_tokens=5, num_beams=3),
    Task("vizwiz", VQA_ACCURACY, load_vizwiz, max_tokens=5, num_beams=3),
    Task("textvqa", VQA_ACCURACY, load_textvqa, max_tokens=10, num_beams=3),
)

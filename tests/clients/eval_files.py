"""Tiny files of the published benchmarks, in their exact formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
MEMES_LINE = {"id": 1, "img": "img/1.png", "label": 1, "text": "its {fun}"}


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(path)
    return path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def karpathy(folder: Path, name: str, place: str, num: int = 8) -> None:
    """Half of it is of split train."""
    rows = []
    for n in range(num):
        split = "train" if n % 2 else "test"
        picture(folder / place.format("train2014" if n % 2 else "val2014") / f"{n}.png", n)
        said = [{"raw": f" a cat number {n} on a mat {k}. "} for k in range(5)]
        row = {"filename": f"{n}.png", "split": split, "sentences": said}
        rows.append(
            row | ({"filepath": "train2014" if n % 2 else "val2014"} if "{}" in place else {})
        )
    write(folder / name, {"images": rows, "dataset": "x"})


def coco(data: Path) -> None:
    karpathy(data / "coco", "dataset_coco.json", "{}")


def flickr30k(data: Path) -> None:
    karpathy(data / "flickr30k", "dataset_flickr30k.json", "flickr30k-images")


def asked_and_answered(data: Path, task: str, asked: str, answered: str) -> None:
    for split in ("train2014", "val2014"):
        questions, annotations = [], []
        for n in range(5):
            picture(data / "coco" / split / f"COCO_{split}_{n:012d}.jpg", n)
            id = n * 1000 + 1
            questions.append({"image_id": n, "question": f"What is {n}?", "question_id": id})
            said = [{"answer": "cat" if k < 7 else "dog", "answer_id": k} for k in range(10)]
            annotations.append({"question_id": id, "image_id": n, "answers": said})
        write(data / task / asked.format(split), {"questions": questions[::-1]})
        write(data / task / answered.format(split), {"annotations": annotations})


def vqav2(data: Path) -> None:
    names = ("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json")
    asked_and_answered(data, "vqav2", *names)


def okvqa(data: Path) -> None:
    asked_and_answered(
        data, "okvqa", "OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"
    )


def vizwiz(data: Path) -> None:
    for split in ("train", "val"):
        rows = []
        for n in range(5):
            picture(data / "vizwiz" / split / f"VizWiz_{split}_{n:08d}.jpg", n)
            said = [{"answer": "cat", "answer_confidence": "yes"} for _ in range(10)]
            file = f"VizWiz_{split}_{n:08d}.jpg"
            rows.append({"image": file, "question": "What?", "answers": said, "answerable": 1})
        write(data / "vizwiz" / f"{split}.json", rows)


def textvqa(data: Path) -> None:
    for split in ("train", "val"):
        rows = []
        for n in range(5):
            picture(data / "textvqa" / "train_images" / f"{split}{n}.jpg", n)
            row = {"question_id": n, "question": "What?", "image_id": f"{split}{n}"}
            rows.append(row | {"answers": ["cat"] * 10})
        content = {"dataset_type": split, "data": rows}
        write(data / "textvqa" / f"TextVQA_0.5.1_{split}.json", content)


def hateful_memes(data: Path) -> None:
    for name in ("train", "dev_seen"):
        lines = []
        for n in range(6):
            picture(data / "hateful_memes" / "img" / f"{name}{n}.png", n)
            row = {**MEMES_LINE, "id": n, "img": f"img/{name}{n}.png", "label": n % 2}
            lines.append(json.dumps(row))
        write(data / "hateful_memes" / f"{name}.jsonl", "\n".join(lines) + "\n")


def imagenet(data: Path) -> None:
    write(data / "imagenet" / "LOC_synset_mapping.txt", SYNSETS)
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            for n in range(3):
                file = picture(data / "imagenet" / split / wnid / f"{wnid}_{n}.png", n)
                file.rename(file.with_suffix(".JPEG"))


def film(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\0\0\x18ftypmp42")


def msvdqa(data: Path) -> None:
    root = data / "msvd_qa"
    write(root / "youtube_mapping.txt", "".join(f"clip_{n} vid{n}\n" for n in range(5)))
    for split in ("train", "test"):
        rows = []
        for n in range(5):
            film(root / "videos" / f"clip_{n}.mp4")
            rows.append({"answer": "cat", "id": n, "question": "what runs?", "video_id": n})
        write(root / f"{split}_qa.json", rows)


def nextqa(data: Path) -> None:
    root = data / "nextqa"
    write(root / "map_vid_vidorID.json", {str(n): f"1164/{n}" for n in range(5)})
    for split in ("train", "test"):
        lines = io.StringIO()
        fields = ["video", "frame_count", "question", "answer", "qid", "type"]
        table = csv.DictWriter(lines, [*fields, "additional_ref_answer"])
        table.writeheader()
        for n in range(5):
            film(root / "videos" / "1164" / f"{n}.mp4")
            row = {"video": n, "question": "why, though", "answer": "cat", "qid": n, "type": "CW"}
            table.writerow(row | {"additional_ref_answer": "a kitten" if n else ""})
        write(root / f"{split}.csv", lines.getvalue())


def shown(parts: Iterable[Any]) -> str:
    return "".join(part.get("text", "<image>") for part in parts)


MAKERS = {
    "coco": coco,
    "flickr30k": flickr30k,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "hateful_memes": hateful_memes,
    "imagenet": imagenet,
    "msvdqa": msvdqa,
    "nextqa": nextqa,
}

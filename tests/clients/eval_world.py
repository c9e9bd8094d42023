"""A small emoji world in the exam's format, and a server that answers by what it knows of it."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

SINGLES = {  # object → family
    "known": {"red heart": "hearts", "red apple": "fruit", "brown dog": "animals"},
    "held_out": {f"thing {n}": f"family {n}" for n in range(6)},
}
COLOURS = {
    "red": (220, 20, 20),
    "blue": (20, 20, 220),
    "green": (20, 180, 20),
    "grey": (90, 90, 90),
}
COUNTS = ("one", "two", "three", "four")
MOTIONS = ("left", "right")
EACH = 6  # pictures of one object
WORDS = [a + b for a in ("dax", "wug", "fep", "zor", "bli", "tom", "kip", "lun") for b in ("", "o")]


def webp(colour: tuple[int, int, int], number: int, frames: int = 1) -> bytes:
    """A picture of its own for every number."""
    made = []
    for frame in range(frames):
        pixels = np.full((16, 16, 3), colour, dtype=np.uint8)
        pixels[:4, :4] = (number * 7 % 256, number // 36, 40 * frame)
        made.append(Image.fromarray(pixels))
    file = io.BytesIO()
    options = {"save_all": True, "append_images": made[1:], "duration": 250} if frames > 1 else {}
    made[0].save(file, "WEBP", lossless=True, **options)
    return file.getvalue()


class Exam:
    """Rows of `index.json`, and the files."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}

    def add(self, colour: str, frames: int = 1, **row: Any) -> None:
        number = len(self.rows)
        file = f"{number:04d}.webp"
        self.files[file] = webp(COLOURS[colour], number, frames)
        asked = [
            {"kind": kind, "question": f"Question: {kind}? Answer:", "answer": answer}
            for kind, answer in row.pop("asked", {}).items()
        ]
        self.rows.append({"file": file, "background": colour, "questions": asked, **row})

    def write(self, folder: Path, version: int = 2) -> Path:
        index = {
            "version": version,
            "pictures": self.rows,
            "made_up_words": WORDS,
            "binding_templates": [["This is a", " {}."], ["Output:", "{}"]],
            "hidden_tasks": {"colour": ["Output:", " {}"], "count": {}, "name": {}},
        }
        path = folder / "emoji_world.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("index.json", json.dumps(index))
            for name, data in self.files.items():
                archive.writestr(name, data)
        return path


def make_exam() -> Exam:
    exam, colours = Exam(), list(COLOURS)
    for split, things in SINGLES.items():
        for name, family in things.items():
            for n in range(EACH):
                colour = colours[n % len(colours)]
                asked = {"name": name, "what": name, "colour": colour, "yes_no": "yes"}
                row = {"objects": [name], "families": [family], "count": "one", "split": split}
                exam.add(colour, kind="single", asked=asked, caption=f"a {name}", **row)
    for n in range(4 * EACH):
        asked = {"count": COUNTS[n % 4], "where": "left"}
        row = {"objects": ["red apple"], "families": ["fruit"], "split": "known"}
        exam.add(colours[n // 6], kind="count", count=COUNTS[n % 4], asked=asked, **row)
        caption = f"a red heart left of a red apple {n % 3}"
        both = {"objects": ["red heart", "red apple"], "families": ["hearts", "fruit"]}
        exam.add("blue", kind="pair", split="known", relation="left", caption=caption, **both)
    for n in range(4):
        for split in SINGLES:
            motion = MOTIONS[n % 2]
            row = {"objects": ["red heart"], "families": ["hearts"], "split": split}
            exam.add("grey", frames=3, kind="film", motion=motion, asked={"motion": motion}, **row)
    return exam


class KnowsTheWorld:
    """Answers every question of the exam rightly, or as `answer` says; counts what it is asked.

    A made-up word is that of the shot with the same object, a hidden task's answer that of the
    query's own kind. `fails` may refuse: it is given the path and the number of the request.
    """

    def __init__(self, exam: Exam, fails: Callable[[str, int], int] = lambda path, n: 200) -> None:
        self.row_of = {exam.files[row["file"]]: row for row in exam.rows}
        self.fails = fails
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.embedded: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/version":
            return httpx.Response(200, json={"version": "0", "model": "oracle", "torch": "0"})
        body = json.loads(request.content)
        self.bodies.append((path, body))
        status = self.fails(path, len(self.bodies))
        if status != 200:
            error = {"message": "no", "type": "t", "param": None, "code": None}
            return httpx.Response(status, json={"error": error})
        answers = {
            "/v1/generate": self.generate,
            "/v1/classify": self.classify,
            "/v1/embeddings": self.embed,
        }
        return httpx.Response(200, json=answers[path](body))

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "text": f" {self.answer(body)}", "finish_reason": "stop"}
        return {"id": "g", "model": "oracle", "choices": [{**choice, "token_ids": []}]}

    def classify(self, body: dict[str, Any]) -> dict[str, Any]:
        right = self.answer(body)
        ranked = sorted(enumerate(body["candidates"]), key=lambda pair: pair[1].strip() != right)
        found = [
            {"index": index, "text": text, "score": -float(place)}
            for place, (index, text) in enumerate(ranked)
        ]
        return {"id": "c", "model": "oracle", "candidates": found}

    def embed(self, body: dict[str, Any]) -> dict[str, Any]:
        """An object's name decides where its pictures lie."""
        data = []
        for item in body["input"]:
            content = bytes_of(item)
            self.embedded.append(content)
            seed = sum(map(ord, " ".join(self.row_of[content]["objects"])))
            vector = np.random.default_rng(seed).normal(size=8).astype("<f4")
            written = base64.b64encode((vector / np.linalg.norm(vector)).astype("<f4").tobytes())
            data.append({"object": "embedding", "index": 0, "embedding": written.decode()})
        return {"object": "list", "data": data, "model": "oracle", "usage": {}}

    def answer(self, body: dict[str, Any]) -> str:
        query = body["query"]
        row = self.row_of[bytes_of(query)]
        if "question" in query:
            return str(
                next(q["answer"] for q in row["questions"] if q["question"] == query["question"])
            )
        if body["task"] == "caption":
            return str(row["caption"])
        return self.taught(body, row)

    def taught(self, body: dict[str, Any], row: dict[str, Any]) -> str:
        shots = [(self.row_of[bytes_of(shot)], shot["answer"]) for shot in body["examples"]]
        for shown, word in shots:
            if shown["objects"] == row["objects"] and word in WORDS:
                return str(word)
        for field in ("background", "count"):
            if all(shown.get(field) == word for shown, word in shots):
                return str(row[field])
        return str(row["objects"][0])


def bytes_of(item: dict[str, Any]) -> bytes:
    source = item.get("image") or item["video"]
    return base64.b64decode(source["data"])

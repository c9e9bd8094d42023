"""Asks a running server the prompts of `tests/data/emoji_world.zip` and marks the answers.

`python tests/exam.py URL` prints how many are right.
"""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from flamingo_client import FlamingoClient, image, text

DATA = Path(__file__).parent / "data" / "emoji_world.zip"
KINDS = ("colour", "count", "words")
AT_ONCE = 8


@dataclass(frozen=True)
class Score:
    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked

    def __str__(self) -> str:
        """Share and 95% interval (Wilson)."""
        n, p, z = self.asked, self.share, 1.96
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return f"{p:.3f} [{middle - half:.3f}, {middle + half:.3f}]"


@dataclass(frozen=True)
class Question:
    kind: str
    parts: list[Any]
    answer: str


def questions(blinded: bool = False) -> Iterator[Question]:
    """All prompts; blinded, every picture is the same grey one."""
    with zipfile.ZipFile(DATA) as archive:
        for prompt in json.loads(archive.read("prompts.json")):
            parts = [
                image(grey() if blinded else archive.read(part["image"]))
                if "image" in part
                else text(part["text"], special_tokens=True)
                for part in prompt["parts"]
            ]
            yield Question(prompt["kind"], parts, prompt["answer"])


def grey() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


def is_right(answer: str, expected: str) -> bool:
    """The whole word, whatever stops and spaces stand around it."""
    return answer.strip(" .\n").lower() == expected


def examine(url: str, blinded: bool = False) -> dict[str, Score]:
    """Every question, greedily; the share of exactly right answers for each kind."""
    asked = list(questions(blinded))
    with FlamingoClient(base_url=url, timeout=60) as client:

        def ask(question: Question) -> bool:
            answer = client.generate(question.parts, max_tokens=16)
            return is_right(answer.choices[0].text, question.answer)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            right = list(pool.map(ask, asked))
    return {
        kind: Score(
            sum(r for q, r in zip(asked, right, strict=True) if q.kind == kind),
            sum(q.kind == kind for q in asked),
        )
        for kind in KINDS
    }


if __name__ == "__main__":
    seeing, blind = (examine(sys.argv[1], blinded) for blinded in (False, True))
    print(f"{'':8} {'seeing':24} blinded")
    for kind in KINDS:
        print(f"{kind:8} {seeing[kind]!s:24} {blind[kind]}")

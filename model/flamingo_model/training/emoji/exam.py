"""Test prompts with pictures of emoji no stage has seen, as one zip that needs no font to use.

`python -m flamingo_model.training.emoji.exam OUT.zip`: `prompts.json` beside WebP pictures. Words,
emoji families and scenes are all held out.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .documents import COLOUR_TEMPLATES, COUNT_TEMPLATES, colour_answer, count_answer, made_up_words
from .world import (
    COLOUR_NAMES,
    COUNTS,
    Pixels,
    Scene,
    Sprites,
    load_sprites,
    random_scene,
    render_scene,
)

Prompt = dict[str, Any]
END_OF_CHUNK = "<|endofchunk|>"


class Exam:
    """Collects prompts and the pictures they name."""

    def __init__(self, sprites: Sprites, seed: int) -> None:
        self.sprites, self.rng = sprites, np.random.default_rng(seed)
        self.pictures: list[Pixels] = []
        self.prompts: list[Prompt] = []

    def picture(self, scene: Scene) -> dict[str, str]:
        self.pictures.append(render_scene(scene, self.sprites, self.rng))
        return {"image": f"{len(self.pictures) - 1:04d}.webp"}

    def sprite(self) -> int:
        return int(self.rng.choice(self.sprites.test()))

    def add(self, kind: str, parts: list[dict[str, str]], answer: str, choices: list[str]) -> None:
        self.prompts.append({"kind": kind, "parts": parts, "answer": answer, "choices": choices})

    def colour(self, number: int) -> None:
        scene = random_scene(self.sprite(), self.rng)
        question, _ = COLOUR_TEMPLATES[0]
        parts = [self.picture(scene), {"text": question}]
        self.add("colour", parts, colour_answer(scene), list(COLOUR_NAMES))

    def count(self, number: int) -> None:
        scene = random_scene(self.sprite(), self.rng, count=number % len(COUNTS) + 1)
        question, _ = COUNT_TEMPLATES[0]
        parts = [self.picture(scene), {"text": question}]
        self.add("count", parts, count_answer(scene), list(COUNTS))

    def words(self, number: int) -> None:
        """Two unseen emoji, one example each; the third picture shows one of them again."""
        shown = [int(s) for s in self.rng.choice(self.sprites.test(), 2, replace=False)]
        words = made_up_words(2, self.rng, held_out=True)
        asked = int(self.rng.integers(2))
        parts: list[dict[str, str]] = []
        for sprite, word in zip(shown, words, strict=True):
            parts += [self.picture(random_scene(sprite, self.rng))]
            parts += [{"text": f"This is a {word}.{END_OF_CHUNK}"}]
        parts += [self.picture(random_scene(shown[asked], self.rng)), {"text": "This is a"}]
        self.add("words", parts, words[asked], words)

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(entry("prompts.json"), json.dumps(self.prompts, indent=1))
            for number, pixels in enumerate(self.pictures):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "WEBP", quality=92, method=6)
                archive.writestr(entry(f"{number:04d}.webp"), file.getvalue())


def entry(name: str) -> zipfile.ZipInfo:
    """A fixed date, so that the same prompts give the same file."""
    return zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))


def make_exam(sprites: Sprites, num: int, seed: int) -> Exam:
    exam = Exam(sprites, seed)
    for kind in (exam.colour, exam.count, exam.words):
        for number in range(num):
            kind(number)
    return exam


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flamingo_model.training.emoji.exam")
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--sprites", type=Path, default=Path("runs/emoji/sprites.npz"))
    chosen = parser.parse_args()
    make_exam(load_sprites(chosen.sprites), chosen.num, chosen.seed).write(chosen.out)
    print(f"{3 * chosen.num} prompts in {chosen.out} ({chosen.out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()

"""Pictures and films that no stage has seen, with all that is known of them, as one zip that needs
no font to use: what `flamingo eval` asks the emoji model about.

`python -m flamingo_model.training.emoji.exam OUT.zip`: `index.json` beside WebP files. Renderings
are new, half of the emoji and all words are held out.
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from .documents import made_up_words
from .pictures import describe
from .tasks import (
    BINDING_TEMPLATES,
    COLOUR_QUESTIONS,
    COUNT_QUESTIONS,
    HIDDEN_PROMPT,
    HIDDEN_TASKS,
    MOTION_QUESTION,
    NAME_QUESTION,
    Shown,
    caption,
    what_question,
    where_question,
    yes_no_question,
)
from .world import (
    COUNTS,
    Film,
    Pixels,
    Scene,
    Sprites,
    load_sprites,
    random_film,
    random_pair,
    random_scene,
    render_film,
    render_scene,
)

VERSION = 2
NUM_FRAMES = 6
FRAME_MS = 1000  # one a second, as films are read
NUM_WORDS = 400
QUALITY = 85

Row = dict[str, Any]


class Exam:
    """Collects pictures and what is known of them."""

    def __init__(self, sprites: Sprites, seed: int) -> None:
        self.sprites, self.rng = sprites, np.random.default_rng(seed)
        self.names = [sprites.names[sprite] for sprite in sprites.known()]
        self.files: list[bytes] = []
        self.rows: list[Row] = []

    def add(self, kind: str, split: str, scene: Scene | Film) -> None:
        shown = describe(scene, self.sprites)
        if isinstance(scene, Film):
            self.files.append(film_file(render_film(scene, self.sprites, self.rng)))
        else:
            self.files.append(picture_file(render_scene(scene, self.sprites, self.rng)))
        self.rows.append(
            {
                "file": f"{len(self.files):04d}.webp",
                "kind": kind,
                "split": split,
                "objects": list(shown.names),
                "families": [name.split()[-1] for name in shown.names],
                "background": shown.background,
                "count": None if shown.is_pair else shown.count,
                "motion": shown.motion,
                "caption": caption(shown),
                "questions": [
                    {"kind": kind, "question": question, "answer": answer.strip()}
                    for kind, question, answer in self.questions(shown, split == "known")
                ],
            }
        )

    def questions(self, shown: Shown, is_known: bool) -> list[tuple[str, str, str]]:
        if shown.motion:
            return [("motion", MOTION_QUESTION, shown.motion)]
        asked = [("colour", COLOUR_QUESTIONS[0], shown.background)]
        if shown.count is not None and not shown.is_pair:
            asked += [("count", COUNT_QUESTIONS[0], shown.count)]
        if not is_known:
            return asked
        if shown.is_pair:
            which = int(self.rng.integers(2))
            asked += [("what", *what_question(shown, which))]
            asked += [("where", *where_question(shown, 1 - which))]
        elif shown.count == "one":
            asked += [("name", NAME_QUESTION, shown.names[0])]
        there = shown.names[int(self.rng.integers(len(shown.names)))]
        other = self.names[int(self.rng.integers(len(self.names)))]
        return [
            *asked,
            ("yes_no", *yes_no_question(shown, (there, other)[int(self.rng.integers(2))])),
        ]

    def write(self, path: Path) -> None:
        words = made_up_words(NUM_WORDS, self.rng, held_out=True)
        index = {
            "version": VERSION,
            "pictures": self.rows,
            "made_up_words": words,
            "binding_templates": BINDING_TEMPLATES,
            "hidden_tasks": {task: [HIDDEN_PROMPT, " {}"] for task in HIDDEN_TASKS},
        }
        with zipfile.ZipFile(path, "w") as archive:
            text = json.dumps(index, separators=(",", ":"))
            archive.writestr(entry("index.json"), text, zipfile.ZIP_DEFLATED)
            for row, file in zip(self.rows, self.files, strict=True):
                archive.writestr(entry(row["file"]), file)


def picture_file(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def film_file(frames: Pixels) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(
        file,
        "WEBP",
        save_all=True,
        append_images=rest,
        duration=FRAME_MS,
        quality=QUALITY,
        method=4,
    )
    return file.getvalue()


def entry(name: str) -> zipfile.ZipInfo:
    """A fixed date, so that the same pictures give the same file."""
    return zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))


def make_exam(
    sprites: Sprites,
    seed: int,
    views: int = 6,
    twice: int = 300,
    counted: int = 500,
    pairs: int = 520,
    films: int = 500,
) -> Exam:
    """`views` of each held-out emoji, one of each known or two, and scenes of every other sort."""
    exam, known, test = Exam(sprites, seed), sprites.known(), sprites.test()
    rng = exam.rng

    def chosen(among: Sequence[int]) -> int:
        return among[int(rng.integers(len(among)))]

    for sprite in track([*known, *known[::3][:twice]], description="known"):
        exam.add("single", "known", random_scene(sprite, rng))
    for sprite in track([s for s in test for _ in range(views)], description="held out"):
        exam.add("single", "held_out", random_scene(sprite, rng))
    for split, among in (("known", known), ("held_out", test)):
        for number in track(range(counted), description=f"counts, {split}"):
            exam.add("count", split, random_scene(chosen(among), rng, number % len(COUNTS) + 1))
        for _ in track(range(films), description=f"films, {split}"):
            exam.add("film", split, random_film(chosen(among), rng, NUM_FRAMES))
    for _ in track(range(pairs), description="pairs"):
        exam.add("pair", "known", random_pair(chosen(known), chosen(known), rng))
    return exam


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flamingo_model.training.emoji.exam")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--sprites", type=Path, default=Path("runs/emoji/sprites.npz"))
    chosen = parser.parse_args()
    exam = make_exam(load_sprites(chosen.sprites), chosen.seed)
    exam.write(chosen.out)
    print(f"{len(exam.rows)} pictures in {chosen.out} ({chosen.out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()

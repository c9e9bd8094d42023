"""A run as a process of its own, to be killed or joined by others: `child.py FOLDER [STEPS]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from flamingo_model.training.config import Config
from flamingo_model.training.data.document import Document, MediaPart, TextPart
from flamingo_model.training.distributed import joined
from flamingo_model.training.loop import trained_weights
from training.made import ListSource, base, captions, config, film, train


def settings(folder: Path, steps: int) -> Config:
    return config(
        folder,
        {"path": "a", "batch": 3, "augment": ["flip", "colour"]},
        {"path": "b", "batch": 3, "weight": 0.2, "p_next": 0.5},
        train={"steps": steps, "save_every": 2, "rate": 1e-2, "clip": 0.5, "max_bad_share": 1.0},
    )


def sources() -> list[ListSource]:
    """The second has a film and a text alone, so that processes have unlike shares."""
    moving = Document((MediaPart("video", film(1, 2)), TextPart("moves")), "film")
    alone = Document((TextPart("only text"),), "text")
    return [ListSource(captions(7), bad=frozenset({3})), ListSource([*captions(2), moving, alone])]


def main(folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        stage = train(settings(folder, steps), sources(), world, base(gate=0.3))
        weights = trained_weights(stage.module)
        if world.is_first:
            torch.save(weights, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

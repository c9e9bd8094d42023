"""Runs as a process, to be killed or joined by others: `child.py FOLDER STEPS STAGE…`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from flamingo_model.training.config import Config
from flamingo_model.training.data.document import Document, MediaPart, TextPart
from flamingo_model.training.distributed import ALONE, World, joined
from flamingo_model.training.optimise import trained_weights
from training.made import ListSource, base, captions, config, film, train


def settings(folder: Path, steps: int, stage: str) -> Config:
    train = {"steps": steps, "stage": stage, "save_every": 2, "rate": 1e-2, "clip": 0.5}
    return config(
        folder / stage,
        {"path": "a", "batch": 3, "augment": ["flip", "colour"]},
        {"path": "b", "batch": 3, "weight": 0.2, "p_next": 0.5},
        train=train | {"max_bad_share": 1.0},
        output={} if stage == "flamingo" else {"kind": "checkpoint"},
        contrastive={"dim": 16, "text_width": 16, "text_layers": 1, "text_heads": 2},
    )


def sources() -> list[ListSource]:
    """The second has a film and a text alone, so that processes have unlike shares."""
    moving = Document((MediaPart("video", film(1, 2)), TextPart("moves")), "film")
    alone = Document((TextPart("only text"),), "text")
    return [ListSource(captions(7), bad=frozenset({3})), ListSource([*captions(2), moving, alone])]


def learn(folder: Path, steps: int, stage: str, world: World = ALONE) -> dict[str, Tensor]:
    """What was trained, whole."""
    found = train(settings(folder, steps, stage), sources(), world, base(gate=0.3))
    return trained_weights(found.module)


def main(folder: Path, steps: int, stages: list[str]) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as world:
        for stage in stages:
            weights = learn(folder, steps, stage, world)
            if world.is_first:
                torch.save(weights, folder / stage / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

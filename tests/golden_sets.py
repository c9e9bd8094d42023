"""What the reference implementations gave for the same weights; see tests/golden/README.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_model.checkpoints.checkpoint import Checkpoint
from flamingo_model.checkpoints.flamingo_mini import open_flamingo_mini
from flamingo_model.checkpoints.idefics import open_idefics
from flamingo_model.checkpoints.openflamingo import open_openflamingo
from flamingo_model.flamingo import Flamingo

GOLDEN = Path(__file__).parent / "golden"


def model_and_tokenizer(opened: Checkpoint) -> tuple[Flamingo, Tokenizer]:
    return opened.load(), opened.tokenizer


EVERY = {"of_opt_x1": 1, "of_mpt_x2": 2, "of_neox_x2": 2}
"""How many layers there are for each cross-attention, in OpenFlamingo's sets."""


@cache
def loaded(name: str) -> tuple[Flamingo, Tokenizer]:
    """The set of that name, read as its family is."""
    folder, clip = GOLDEN / name, GOLDEN / "of_clip_vit" / "hf"
    if name == "fm_opt":
        parts = (folder / "model", folder / "lm", folder / "clip")
        return model_and_tokenizer(open_flamingo_mini(*parts))
    if name == "idefics_qkln":
        return model_and_tokenizer(open_idefics(folder))
    checkpoint = folder / "checkpoint.pt"
    return model_and_tokenizer(open_openflamingo(checkpoint, folder / "lm", clip, EVERY[name]))


@dataclass(frozen=True)
class Row:
    """One prompt as the reference ran it, without the padding of its batch."""

    ids: list[int]
    pixels: Tensor  # [pictures, 1, 3, H, W]
    logits: Tensor  # [len(ids), vocab]
    new_ids: list[int]
    text: str
    images: list[str]
    new_text: str


@dataclass(frozen=True)
class GoldenSet:
    """A checkpoint with all that was recorded from it."""

    folder: Path

    @property
    def meta(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "golden" / "meta.json").read_text())
        return values

    def arrays(self, case: str) -> dict[str, Tensor]:
        with np.load(self.folder / "golden" / f"{case}.npz") as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def rows(self, case: str) -> list[Row]:
        told, arrays = self.meta["cases"][case], self.arrays(case)
        rows = []
        for number, mask in enumerate(arrays["attention_mask"]):
            rows.append(
                Row(
                    ids=arrays["input_ids"][number][mask].tolist(),
                    pixels=arrays["vision_x"][number, : told["n_images"][number]],
                    logits=arrays["logits"][number][mask],
                    new_ids=told["greedy_new_tokens"][number],
                    text=told["texts"][number],
                    images=told["images"][number],
                    new_text=told["greedy_text"][number],
                )
            )
        return rows

"""A folder → the network in it, whoever made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..flamingo import Flamingo
from .idefics import load_idefics
from .native import load_native

Load = Callable[[Path, str, torch.dtype], tuple[Flamingo, Tokenizer]]
LOADERS: dict[str, Load] = {"idefics": load_idefics}
"""By the `model_type` of config.json, which a native one does not have."""


def load_checkpoint(
    folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Flamingo, Tokenizer]:
    """The model, in evaluation mode and without gradients, and its tokenizer.

    Raises CheckpointError naming what is wrong with the folder.
    """
    return LOADERS.get(model_type(folder), load_native)(folder, device, dtype)


def model_type(folder: Path) -> str:
    """Empty where there is none; what is wrong with a config is for its loader to say."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return ""
    return str(values.get("model_type", "")) if isinstance(values, dict) else ""

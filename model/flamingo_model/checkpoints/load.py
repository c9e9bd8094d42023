"""A folder → the network in it, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..flamingo import Flamingo
from .folder import read_config
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
    return str(read_config(folder / "config.json").get("model_type", ""))

"""The checkpoint that the settings name, loaded."""

from __future__ import annotations

from tokenizers import Tokenizer

from flamingo_model.checkpoints.checkpoint import pick_dtype
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.flamingo import Flamingo

from .config import Settings


def load_checkpoint(settings: Settings, device: str) -> tuple[Flamingo, Tokenizer]:
    """Raises CheckpointError, QuantizeError."""
    opened = open_checkpoint(settings.model, settings.family, settings.parts())
    quantize = None if settings.quantize == "none" else settings.quantize
    dtype = pick_dtype(settings.dtype, device)
    return opened.load(device, dtype, quantize), opened.tokenizer

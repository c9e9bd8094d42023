"""The checkpoint that the settings name, loaded."""

from __future__ import annotations

from tokenizers import Tokenizer

from flamingo_model.checkpoints.checkpoint import Checkpoint, pick_dtype
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.flamingo import Flamingo

from .config import Settings


def open_settings(settings: Settings) -> Checkpoint:
    """Raises CheckpointError."""
    return open_checkpoint(settings.model, settings.family, settings.parts())


def load_checkpoint(settings: Settings, device: str) -> tuple[Flamingo, Tokenizer]:
    """Raises CheckpointError, QuantizeError."""
    opened = open_settings(settings)
    return load_opened(opened, settings, device), opened.tokenizer


def load_opened(opened: Checkpoint, settings: Settings, device: str) -> Flamingo:
    """Raises CheckpointError, QuantizeError."""
    quantize = None if settings.quantize == "none" else settings.quantize
    dtype = pick_dtype(settings.dtype, device)
    return opened.load(device, dtype, quantize)

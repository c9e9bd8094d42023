"""Which reader a checkpoint's family has, and what of the settings it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from flamingo_model.checkpoints.native import EMBEDDED, load_native
from flamingo_model.checkpoints.openflamingo import load_openflamingo
from flamingo_model.flamingo import Flamingo

from .config import Settings

Loaded = tuple[Flamingo, Tokenizer]


def load_checkpoint(settings: Settings, device: str) -> Loaded:
    """Raises CheckpointError."""
    return LOADERS[settings.family](settings, device)


def native(settings: Settings, device: str) -> Loaded:
    folder = EMBEDDED if settings.model == "embedded" else Path(settings.model)
    return load_native(folder, device)


def openflamingo(settings: Settings, device: str) -> Loaded:
    lm, vision, interval = settings.lm, settings.vision, settings.cross_attention_interval
    assert lm and vision and interval, "Settings asks for them"
    return load_openflamingo(Path(settings.model), Path(lm), Path(vision), interval, device)


LOADERS: dict[str, Callable[[Settings, str], Loaded]] = {
    "native": native,
    "openflamingo": openflamingo,
}

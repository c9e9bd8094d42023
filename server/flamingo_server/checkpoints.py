"""Which reader a checkpoint's family has, and what of the settings it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from flamingo_model.checkpoints.checkpoint import pick_dtype
from flamingo_model.checkpoints.folder import open_folder
from flamingo_model.checkpoints.load import LOADERS as READERS
from flamingo_model.checkpoints.load import model_type
from flamingo_model.checkpoints.openflamingo import load_openflamingo
from flamingo_model.checkpoints.published import resolve
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.flamingo import Flamingo

from .config import Settings

Loaded = tuple[Flamingo, Tokenizer]


def load_checkpoint(settings: Settings, device: str) -> Loaded:
    """Raises CheckpointError, QuantizeError."""
    return LOADERS[settings.family](settings, device)


def native(settings: Settings, device: str) -> Loaded:
    """A native folder, or one of Hugging Face whose config.json says which reader it needs."""
    folder, dtype = resolve(settings.model), pick_dtype(settings.dtype, device)
    if reader := READERS.get(model_type(folder)):
        refuse_quantize(settings)
        return reader(folder, device, dtype)
    checkpoint = open_folder(folder)
    quantize = None if settings.quantize == "none" else settings.quantize
    model = checkpoint.load(device, dtype, quantize)
    return model, checkpoint.tokenizer


def openflamingo(settings: Settings, device: str) -> Loaded:
    lm, vision, interval = settings.lm, settings.vision, settings.cross_attention_interval
    assert lm and vision and interval, "Settings asks for them"
    refuse_quantize(settings)
    dtype = pick_dtype(settings.dtype, device)
    return load_openflamingo(Path(settings.model), Path(lm), Path(vision), interval, device, dtype)


def refuse_quantize(settings: Settings) -> None:
    if settings.quantize != "none":
        raise CheckpointError("quantize works on native checkpoints only, as yet")


LOADERS: dict[str, Callable[[Settings, str], Loaded]] = {
    "native": native,
    "openflamingo": openflamingo,
}

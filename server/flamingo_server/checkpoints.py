"""Which reader a checkpoint's family has, and what of the settings it is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from flamingo_model.checkpoints.checkpoint import pick_dtype
from flamingo_model.checkpoints.flamingo_mini import load_flamingo_mini
from flamingo_model.checkpoints.folder import open_folder
from flamingo_model.checkpoints.load import LOADERS as READERS
from flamingo_model.checkpoints.load import model_type
from flamingo_model.checkpoints.openflamingo import load_openflamingo
from flamingo_model.checkpoints.openflamingo_v1 import load_openflamingo_v1
from flamingo_model.checkpoints.otter import load_otter, load_otter_weights
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


def refuse_quantize(settings: Settings) -> None:
    if settings.quantize != "none":
        raise CheckpointError("quantize works on native checkpoints only, as yet")


def in_parts(load: Callable[..., Loaded]) -> Callable[[Settings, str], Loaded]:
    """A reader that takes the folders and the interval which `NEEDS` made the settings give."""

    def loaded(settings: Settings, device: str) -> Loaded:
        refuse_quantize(settings)
        parts: dict[str, Path | int | None] = {
            "lm": Path(settings.lm) if settings.lm else None,
            "vision": Path(settings.vision) if settings.vision else None,
            "interval": settings.cross_attention_interval,
        }
        given = {name: part for name, part in parts.items() if part is not None}
        dtype = pick_dtype(settings.dtype, device)
        return load(Path(settings.model), **given, device=device, dtype=dtype)

    return loaded


LOADERS: dict[str, Callable[[Settings, str], Loaded]] = {
    "native": native,
    "openflamingo": in_parts(load_openflamingo),
    "openflamingo-v1": in_parts(load_openflamingo_v1),
    "otter": in_parts(load_otter),
    "otter-weights": in_parts(load_otter_weights),
    "flamingo-mini": in_parts(load_flamingo_mini),
}

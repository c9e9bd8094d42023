"""What a run leaves: an adapter with what was trained, or a whole native checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor, nn

from .. import adapters
from ..checkpoints.checkpoint import DTYPES, Checkpoint
from ..checkpoints.lazy import Recipes
from ..checkpoints.writing import write_folder
from .base import Base, stored_tensors
from .config import Config
from .distributed import World, full
from .lora import fused, plain_name
from .report import read_log


def base_digest(base: Base) -> str:
    """Of the checkpoint as it is stored, so that any server of it knows it again."""
    assert base.stored is not None  # a config wants no adapter of a base that is all fresh
    return adapters.base_digest(base.stored)


def write_result(base: Base, module: nn.Module, config: Config, digest: str, world: World) -> Path:
    """Every process must ask; the first writes. Gives the adapter's file or the folder."""
    parameters = {k: p for k, p in module.named_parameters() if k.startswith("model.")}
    is_adapter = config.output.kind == "adapter"
    ours = {
        plain_name(name.removeprefix("model.")): full(p)
        for name, p in parameters.items()
        if p.requires_grad or not is_adapter
    }
    folder = Path(config.output.folder)
    target = folder / ("adapter.safetensors" if is_adapter else "checkpoint")
    if world.is_first and is_adapter:
        adapters.save_adapter(target, ours, card(config, digest))
    elif world.is_first:
        changed = {
            plain_name(k.removeprefix("model.")) for k, p in parameters.items() if p.requires_grad
        }
        tensors = whole_tensors(base, ours, changed, config)
        checkpoint = Checkpoint(base.model.config, base.tokenizer, Recipes(tensors), str(target))
        checkpoint = dataclasses.replace(
            checkpoint, config=dataclasses.replace(checkpoint.config, name=config.output.label)
        )
        write_folder(checkpoint, target, DTYPES[config.output.dtype])
    world.wait()
    return target


def whole_tensors(
    base: Base, ours: dict[str, Tensor], changed: set[str], config: Config
) -> dict[str, Tensor]:
    """Of every tensor what the files have, unless it was trained or begun fresh."""
    stored = stored_tensors(base)
    fresh = tuple(f"{part}." for part in config.model.fresh)
    tensors = {
        name: tensor if name in changed or name.startswith(fresh) else stored.get(name, tensor)
        for name, tensor in ours.items()
    }
    return fused(tensors, config.lora)


def card(config: Config, digest: str) -> adapters.AdapterCard:
    values = dataclasses.asdict(config)
    has_lora = "lora" in config.train.what
    log = read_log(Path(config.output.folder) / "log.jsonl")
    return adapters.AdapterCard(
        base_digest=digest,
        name=config.output.label,
        config={name: values[name] for name in ("model", "train", "lora")},
        data={"datasets": values["datasets"]},
        metrics={k: v for k, v in (log[-1] if log else {}).items() if k != "seconds"},
        lora_rank=config.lora.rank if has_lora else None,
        lora_alpha=config.lora.alpha if has_lora else None,
    )

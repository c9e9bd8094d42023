"""Low-rank updates of the decoder's linear layers: PEFT adds and learns them, here they are named.

`<weight>.lora_A` [r, in] and `.lora_B` [out, r] stand for W + alpha / r · B A (Hu et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .config import LoraConfig

FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.default\.weight")


def add_lora(decoder: nn.Module, config: LoraConfig, seed: int) -> None:
    """In place; the network computes the same until the first step, for B begins at 0."""
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        message = 'train.what = "lora" needs peft: pip install flamingo-server[train]'
        raise ImportError(message) from error
    torch.manual_seed(seed)
    settings: Any = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0}
    inject_adapter_in_model(PeftConfig(target_modules=[*config.targets], **settings), decoder)


def plain_name(name: str) -> str:
    """PEFT's name of a parameter → ours: of the layer itself, or of a factor."""
    if found := FACTOR.fullmatch(name):
        return f"{found['layer']}.lora_{found['side']}"
    return name.replace(".base_layer.", ".")


def fused(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Plain names; each pair of factors is added to its weight and gone."""
    out = dict(weights)
    for name in [name for name in weights if name.endswith(".lora_A")]:
        layer = name.removesuffix(".lora_A")
        down, up = out.pop(name).float(), out.pop(f"{layer}.lora_B").float()
        weight = out[f"{layer}.weight"]
        delta = up @ down * (config.alpha / config.rank)
        out[f"{layer}.weight"] = (weight.float() + delta).to(weight.dtype)
    return out

"""A published CLIP's picture tower: a Hugging Face folder, or open_clip's own.

Its text side is passed over; so is what stands behind the last layer, which the resampler skips.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clip import ClipTower
from ..vision_config import VisionConfig
from .files import open_file, open_model
from .hollow import hollow
from .weights import CheckpointError, check_depth, complain, mismatches

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
HARMLESS = (
    r"text_model\..+",
    r"(text|visual)_projection\.weight",
    r"logit_scale",
    r"vision_model\.post_layernorm\.(weight|bias)",
    r"vision_model\.embeddings\.position_ids",
)
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OPEN_CLIP_SHAPE = {"image_size", "width", "patch_size", "layers", "head_width", "mlp_ratio"}
OPEN_CLIP_HARMLESS = (
    r"(transformer|token_embedding|ln_final)\..+",
    r"positional_embedding|text_projection|logit_scale|attn_mask",
    r"visual\.ln_post\.(weight|bias)",
    r"visual\.proj",
)
OPEN_CLIP_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1": "embeddings.patch_embedding",
    "ln_pre": "pre_layrnorm",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def read_clip(folder: Path) -> tuple[VisionConfig, dict[str, Tensor]]:
    """The tower's config and its weights, lazy, under our names; raises CheckpointError."""
    is_open_clip = any((folder / name).is_file() for name in OPEN_CLIP_WEIGHTS)
    read_config, read_weights = (
        (open_clip_config, open_clip_weights) if is_open_clip else (hf_config, hf_weights)
    )
    config = checked(folder, read_config)
    weights, leftover = read_weights(folder)
    check_depth(config.num_layers, len(weights), str(folder))
    with hollow():
        expected = ClipTower(config).state_dict()
    problems = mismatches(weights, expected)
    problems["leftover"] |= leftover
    complain(str(folder), problems)
    return config, weights


def checked(folder: Path, read: Callable[[Path], VisionConfig]) -> VisionConfig:
    try:
        return read(folder)
    except KeyError as error:
        raise CheckpointError(f"{folder}: its config lacks {error}") from error
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def hf_config(folder: Path) -> VisionConfig:
    """Of the tower alone, or of the whole CLIP; silence means what it means to transformers."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values = values.get("vision_config", values)
    if (kind := values.get("model_type", "clip_vision_model")) != "clip_vision_model":
        raise ValueError(f"model_type {kind!r} is not a CLIP")
    return clip_config(
        image_size=values.get("image_size", 224),
        dim=values.get("hidden_size", 768),
        patch_size=values.get("patch_size", 32),
        num_layers=values.get("num_hidden_layers", 12),
        num_heads=values.get("num_attention_heads", 12),
        ff_dim=values.get("intermediate_size", 3072),
        activation=values.get("hidden_act", "quick_gelu"),
        norm_eps=values.get("layer_norm_eps", 1e-5),
    )


def hf_weights(folder: Path) -> tuple[dict[str, Tensor], set[str]]:
    weights, leftover = dict[str, Tensor](), set[str]()
    for name, tensor in open_model(folder).items():
        if name.startswith("vision_model.") and not is_any(name, HARMLESS):
            weights[name.removeprefix("vision_model.")] = tensor
        elif not is_any(name, HARMLESS):
            leftover.add(name)
    return weights, leftover


def open_clip_config(folder: Path) -> VisionConfig:
    """From the hub's `open_clip_config.json`, or the library's own `ViT-….json`."""
    paths = [*folder.glob("open_clip_config.json"), *folder.glob("ViT-*.json")]
    if len(paths) != 1:
        raise ValueError("open_clip weights need one open_clip_config.json or ViT-….json")
    values = json.loads(paths[0].read_text(encoding="utf-8"))
    values = values.get("model_cfg", values)
    vision = values["vision_cfg"]
    if unknown := sorted(vision.keys() - OPEN_CLIP_SHAPE):
        raise ValueError(f"vision_cfg asks for {unknown}; supported are {sorted(OPEN_CLIP_SHAPE)}")
    return clip_config(
        image_size=vision["image_size"],
        dim=vision["width"],
        patch_size=vision["patch_size"],
        num_layers=vision["layers"],
        num_heads=vision["width"] // vision.get("head_width", 64),
        ff_dim=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        activation="quick_gelu" if values.get("quick_gelu") else "gelu",
        norm_eps=1e-5,
    )


def open_clip_weights(folder: Path) -> tuple[dict[str, Tensor], set[str]]:
    path = next(folder / name for name in OPEN_CLIP_WEIGHTS if (folder / name).is_file())
    weights, leftover = dict[str, Tensor](), set[str]()
    for name, tensor in open_file(path).items():
        if is_any(name, OPEN_CLIP_HARMLESS):
            continue
        if found := from_open_clip(name.removeprefix("visual."), tensor):
            weights |= found
        else:
            leftover.add(name)
    return weights, leftover


def from_open_clip(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of its tensors as ours, several where it is fused, none where it is unknown."""
    if name in OPEN_CLIP_NAMES:
        return {OPEN_CLIP_NAMES[name]: tensor}
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        prefix = f"encoder.layers.{match[1]}.self_attn"
        parts = zip("qkv", tensor.chunk(3), strict=False)
        return {f"{prefix}.{part}_proj.{match[2]}": x.clone() for part, x in parts}
    module, _, kind = name.rpartition(".")
    prefix, table = "", OPEN_CLIP_NAMES
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", module):
        prefix, table, module = f"encoder.layers.{match[1]}.", OPEN_CLIP_LAYER, match[2]
    return {f"{prefix}{table[module]}.{kind}": tensor} if module in table else {}


def clip_config(**shape: Any) -> VisionConfig:
    return VisionConfig(
        kind="clip",
        widths=(),
        blocks=(),
        transform="clip",
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        **shape,
    )


def is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)

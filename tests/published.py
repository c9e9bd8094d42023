"""Tiny random models of ours, written as their families publish them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from flamingo_model.checkpoints.clip import hf_config
from flamingo_model.checkpoints.language_models import decoder_config
from flamingo_model.checkpoints.openflamingo import flamingo_config
from flamingo_model.config import SpecialTokens
from flamingo_model.flamingo import Flamingo
from golden_sets import GOLDEN

CLIP = GOLDEN / "of_clip_vit" / "hf"
Weights = dict[str, Tensor]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
MPT: dict[str, Any] = {
    "model_type": "mpt",
    "architectures": ["MPTForCausalLM"],
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 4,
    "max_seq_len": 64,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "attn_config": {"alibi": True, "attn_type": "multihead_attention"},
}
MPT_1B: dict[str, Any] = {
    "model_type": "mosaic_gpt",
    "architectures": ["MosaicGPT"],
    "d_model": 32,
    "n_layers": 4,
    "n_heads": 4,
    "max_seq_len": 64,
    "mlp_ratio": 4,
    "no_bias": True,
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_qk_ln": True,
}
MODULES = {
    "llama": {
        "attention_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "mpt": {
        "attention_norm": "norm_1",
        "q": "attn.Wqkv",
        "out": "attn.out_proj",
        "feed_forward_norm": "norm_2",
        "up": "ffn.up_proj",
        "down": "ffn.down_proj",
    },
    "mosaic_gpt": {
        "attention_norm": "ln_1",
        "q": "attn.Wqkv",
        "q_norm": "attn.q_ln",
        "k_norm": "attn.k_ln",
        "out": "attn.out_proj",
        "feed_forward_norm": "ln_2",
        "up": "mlp.mlp_up",
        "down": "mlp.mlp_down",
    },
}
LAYERS = {"llama": "model.layers", "mpt": "transformer.blocks", "mosaic_gpt": "transformer.blocks"}
TOP = {
    "llama": {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    "mpt": {"embed": "transformer.wte", "norm": "transformer.norm_f"},
    "mosaic_gpt": {"embed": "transformer.wte", "norm": "transformer.ln_f"},
}
FEED_FORWARD = {"norm": "0", "up": "1", "down": "3"}
GATES = {"attention_gate": "attn_gate", "feed_forward_gate": "ff_gate"}


@dataclass(frozen=True)
class Style:
    """Where OpenFlamingo and Otter write the same tensor differently."""

    attention: str  # of a resampler's layer
    feed_forward: str
    block_feed_forward: str


OPEN_FLAMINGO = Style("0.", "1.", "ff.")
OTTER = Style("", "feed_forward.", "feed_forward.")


def source(text: dict[str, Any], interval: int, num_rows: int, num_frames: int = 0) -> Flamingo:
    """A model of ours with everything random and its gates open."""
    decoder = decoder_config(text | {"vocab_size": num_rows})
    config = flamingo_config("source", hf_config(CLIP), decoder, interval, SpecialTokens())
    resampler = replace(config.resampler, num_time_embeddings=num_frames)
    model = Flamingo(replace(config, resampler=resampler))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.constant_(parameter, 0.7)
    return model.eval().requires_grad_(False)


def added(model: Flamingo, kind: str, style: Style, interval: int) -> Weights:
    """Resampler and cross-attention under their published names."""
    found: Weights = {}
    for name, tensor in model.state_dict().items():
        if name == "resampler.time_embeddings":
            found |= {"perceiver.frame_embs": tensor.squeeze(1)} if len(tensor) else {}
        elif name.startswith("resampler."):
            found[resampler_name(name.removeprefix("resampler."), style)] = tensor
        elif match := re.fullmatch(r"cross_attention\.(\d+)\.(.+)", name):
            layer = (int(match[1]) + 1) * interval - 1
            prefix = f"lang_encoder.{LAYERS[kind]}.{layer}.gated_cross_attn_layer."
            found[prefix + block_name(match[2], style)] = tensor.reshape(tensor.shape or (1,))
    return {name: tensor.clone() for name, tensor in found.items()}


def resampler_name(name: str, style: Style) -> str:
    match = re.fullmatch(r"layers\.(\d)\.(feed_forward\.)?(.+)", name)
    if not match:
        return f"perceiver.{name}"
    if not match[2]:
        return f"perceiver.layers.{match[1]}.{style.attention}{match[3]}"
    module, kind = match[3].split(".")
    return f"perceiver.layers.{match[1]}.{style.feed_forward}{FEED_FORWARD[module]}.{kind}"


def block_name(name: str, style: Style) -> str:
    if name in GATES:
        return GATES[name]
    if name.startswith("feed_forward."):
        module, kind = name.removeprefix("feed_forward.").split(".")
        return f"{style.block_feed_forward}{FEED_FORWARD[module]}.{kind}"
    return f"attn.{name}"


def language(model: Flamingo, kind: str) -> Weights:
    """The language model as it is published alone."""
    state, found = model.decoder.state_dict(), dict[str, Tensor]()
    for name, tensor in state.items():
        module, _, part = name.rpartition(".")
        if module in TOP[kind]:
            found[f"{TOP[kind][module]}.{part}"] = tensor
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)", module)
        if match and match[2] in MODULES[kind]:
            if MODULES[kind][match[2]] == "attn.Wqkv":
                tensor = torch.cat([state[f"layers.{match[1]}.{x}.weight"] for x in "qkv"])
            found[f"{LAYERS[kind]}.{match[1]}.{MODULES[kind][match[2]]}.{part}"] = tensor
    return {name: tensor.clone() for name, tensor in found.items()}


def wrapped(weights: Weights, kind: str) -> Weights:
    """The language model's tensors as they are named inside of Flamingo."""
    layer = re.compile(rf"{re.escape(LAYERS[kind])}\.(\d+)\.")
    return {
        "lang_encoder." + layer.sub(rf"{LAYERS[kind]}.\1.decoder_layer.", name): tensor
        for name, tensor in weights.items()
    }


def tower(model: Flamingo) -> Weights:
    return {f"vision_model.{k}": v.clone() for k, v in model.vision.state_dict().items()}


def write_tokenizer(folder: Path) -> int:
    """A tokenizer that ends texts as LLaMA's does; how many tokens it has."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(GOLDEN / "of_mpt_x2" / "lm" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def write_lm(folder: Path, text: dict[str, Any], weights: Weights, num_rows: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(text | {"vocab_size": num_rows}))
    return folder


def write_clip(folder: Path, model: Flamingo) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tower(model), folder / "model.safetensors")
    (folder / "config.json").write_text((CLIP / "config.json").read_text())
    return folder

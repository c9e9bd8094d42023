"""Published language models as our decoder: which config, and whose tensor names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import DecoderConfig, build
from ..decoder import Decoder
from .files import open_model
from .hollow import hollow
from .key_map import Into, KeyMap, thirds, thirds_of_heads, turned, turned_thirds
from .language_configs import (
    Fields,
    Values,
    read_gpt2,
    read_gpt_neox,
    read_gptj,
    read_llama,
    read_mistral,
    read_mosaic_gpt,
    read_mpt,
    read_opt,
)
from .lazy import real
from .weights import CheckpointError


@dataclass(frozen=True)
class Family:
    """How one `model_type` is read."""

    read: Callable[[Values], Fields]
    keys: KeyMap


def family(values: Mapping[str, Any]) -> Family:
    if (kind := values.get("model_type")) not in FAMILIES:
        raise ValueError(f"model_type {kind!r} is not known; known: {sorted(FAMILIES)}")
    return FAMILIES[kind]


def decoder_config(values: Mapping[str, Any]) -> DecoderConfig:
    """From a language model's config.json; ValueError names what we cannot do."""
    reader = family(values)
    try:
        fields = reader.read(Values(values))
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the config holds a value of the wrong type: {error}") from error
    return build(DecoderConfig, fields)


def decoder_weights(
    values: Mapping[str, Any], weights: Mapping[str, Tensor], where: str = "the state dict"
) -> dict[str, Tensor]:
    """Their state dict as ours; CheckpointError names what does not fit."""
    return family(values).keys.convert(weights, decoder_config(values), where)


def load_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """A published language model, in evaluation mode and without gradients."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config = decoder_config(values)
    except (ValueError, OSError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    weights = decoder_weights(values, open_model(folder), str(folder))
    with hollow():
        decoder = Decoder(config)
    decoder.load_state_dict(
        {k: real(v).to(dtype, copy=True) for k, v in weights.items()}, assign=True
    )
    return decoder.eval().requires_grad_(False)


def names(**ours: str) -> dict[str, Into]:
    """`q="self_attn.q_proj"`: one module of theirs is one of ours."""
    return {theirs: Into((our,)) for our, theirs in ours.items()}


QKV = ("q", "k", "v")

OPT = KeyMap(
    base="model.",
    layers="decoder.layers",
    top={
        **names(embed="decoder.embed_tokens", norm="decoder.final_layer_norm", head="lm_head"),
        **names(project_in="decoder.project_in", project_out="decoder.project_out"),
        "decoder.embed_positions": Into(("positions.table",)),
    },
    layer=names(
        attention_norm="self_attn_layer_norm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        out="self_attn.out_proj",
        feed_forward_norm="final_layer_norm",
        up="fc1",
        down="fc2",
    ),
)

GPT2 = KeyMap(
    base="transformer.",
    layers="h",
    top=names(embed="wte", norm="ln_f", head="lm_head") | {"wpe": Into(("positions.table",))},
    layer=names(attention_norm="ln_1", feed_forward_norm="ln_2")
    | {
        "attn.c_attn": Into(QKV, turned_thirds),
        "attn.c_proj": Into(("out",), turned),
        "mlp.c_fc": Into(("up",), turned),
        "mlp.c_proj": Into(("down",), turned),
    },
    harmless=(r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias"),
)

GPTJ = KeyMap(
    base="transformer.",
    layers="h",
    top=names(embed="wte", norm="ln_f", head="lm_head"),
    layer=names(
        attention_norm="ln_1",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        out="attn.out_proj",
        up="mlp.fc_in",
        down="mlp.fc_out",
    ),
    harmless=(r"h\.\d+\.attn\.bias", r"h\.\d+\.attn\.masked_bias"),
)

GPT_NEOX = KeyMap(
    base="gpt_neox.",
    layers="layers",
    # The head is `embed_out` in every file; transformers 5 calls it `lm_head` once loaded.
    top=names(embed="embed_in", norm="final_layer_norm", head="embed_out") | names(head="lm_head"),
    layer=names(
        attention_norm="input_layernorm",
        out="attention.dense",
        feed_forward_norm="post_attention_layernorm",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    )
    | {"attention.query_key_value": Into(QKV, thirds_of_heads)},
    harmless=(
        r"layers\.\d+\.attention\.bias",
        r"layers\.\d+\.attention\.masked_bias",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
)

LLAMA = KeyMap(
    base="model.",
    layers="layers",
    top=names(embed="embed_tokens", norm="norm", head="lm_head"),
    layer=names(
        attention_norm="input_layernorm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        out="self_attn.o_proj",
        feed_forward_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
    ),
    harmless=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)

MPT = KeyMap(
    base="transformer.",
    layers="blocks",
    top=names(embed="wte", norm="norm_f", head="lm_head"),
    layer=names(
        attention_norm="norm_1",
        out="attn.out_proj",
        feed_forward_norm="norm_2",
        up="ffn.up_proj",
        down="ffn.down_proj",
    )
    | {"attn.Wqkv": Into(QKV, thirds)},
)

MOSAIC_GPT = KeyMap(
    base="transformer.",
    layers="blocks",
    top=names(embed="wte", norm="ln_f"),
    layer=names(
        attention_norm="ln_1",
        q_norm="attn.q_ln",
        k_norm="attn.k_ln",
        out="attn.out_proj",
        feed_forward_norm="ln_2",
        up="mlp.mlp_up",
        down="mlp.mlp_down",
    )
    | {"attn.Wqkv": Into(QKV, thirds)},
)

FAMILIES = {
    "opt": Family(read_opt, OPT),
    "gpt2": Family(read_gpt2, GPT2),
    "gptj": Family(read_gptj, GPTJ),
    "gpt_neox": Family(read_gpt_neox, GPT_NEOX),
    "llama": Family(read_llama, LLAMA),
    "mistral": Family(read_mistral, LLAMA),
    "mpt": Family(read_mpt, MPT),
    "mosaic_gpt": Family(read_mosaic_gpt, MOSAIC_GPT),
}

"""IDEFICS as Hugging Face keeps it: `config.json`, `tokenizer.json`, weights in one file or shards.

Knows their names and how their tensors come together as ours; the network is the config's affair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..config import DecoderConfig, FlamingoConfig, SpecialTokens, build
from .checkpoint import Checkpoint, empty_model
from .files import open_model
from .language_configs import Fields, Values, read_llama
from .language_models import LLAMA
from .lazy import Recipes
from .native import check_tokenizer, read_tokenizer
from .weights import CheckpointError, complain

FILES = ("config.json", "tokenizer.json")
END_OF_UTTERANCE = "<end_of_utterance>"
DEFAULTS = {
    "vocab_size": 32000,
    "additional_vocab_size": 0,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "cross_layer_interval": 1,
    "qk_layer_norms": False,
    "use_resampler": False,
    "alpha_type": "float",
}
VISION_DEFAULTS = {
    "embed_dim": 768,
    "image_size": 224,
    "intermediate_size": 5120,
    "patch_size": 14,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
RESAMPLER_DEFAULTS = {
    "resampler_n_latents": 64,
    "resampler_depth": 6,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "qk_layer_norms_perceiver": False,
}
PIXEL_DEFAULTS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""What silence means in their config.json and preprocessor_config.json."""

HARMLESS = r".+\.rotary_emb\.inv_freq|model\.vision_model\.embeddings\.position_ids"

_RESAMPLER = r"model.perceiver_resampler."
_BLOCK = r"model.perceiver_resampler.blocks.\1."
_GATED = r"model.gated_cross_attn_layers.\1."
SOURCES: dict[str, tuple[str, ...]] = {
    r"vision\.model\.(.+)": (r"model.vision_model.\1",),
    r"resampler\.latents": (_RESAMPLER + "latents",),
    r"resampler\.norm\.(.+)": (_RESAMPLER + r"layer_norm.\1",),
    r"resampler\.layers\.(\d+)\.norm_media\.(.+)": (_BLOCK + r"0.context_layer_norm.\2",),
    r"resampler\.layers\.(\d+)\.norm_latents\.(.+)": (_BLOCK + r"0.latents_layer_norm.\2",),
    r"resampler\.layers\.(\d+)\.([qk])_norm\.(.+)": (_BLOCK + r"0.\2_layer_norm.\3",),
    r"resampler\.layers\.(\d+)\.to_q\.weight": (_BLOCK + "0.q_proj.weight",),
    r"resampler\.layers\.(\d+)\.to_kv\.weight": (
        _BLOCK + "0.k_proj.weight",
        _BLOCK + "0.v_proj.weight",
    ),
    r"resampler\.layers\.(\d+)\.to_out\.weight": (_BLOCK + "0.output_proj.weight",),
    r"resampler\.layers\.(\d+)\.feed_forward\.norm\.(.+)": (_BLOCK + r"1.ln.\2",),
    r"resampler\.layers\.(\d+)\.feed_forward\.up\.weight": (_BLOCK + "1.fc.weight",),
    r"resampler\.layers\.(\d+)\.feed_forward\.down\.weight": (_BLOCK + "1.c_proj.weight",),
    r"cross_attention\.(\d+)\.norm\.weight": (_GATED + "input_layernorm.weight",),
    r"cross_attention\.(\d+)\.([qk])_norm\.weight": (_GATED + r"cross_attn.\2_layer_norm.weight",),
    r"cross_attention\.(\d+)\.to_q\.weight": (_GATED + "cross_attn.q_proj.weight",),
    r"cross_attention\.(\d+)\.to_kv\.weight": (
        _GATED + "cross_attn.k_proj.weight",
        _GATED + "cross_attn.v_proj.weight",
    ),
    r"cross_attention\.(\d+)\.to_out\.weight": (_GATED + "cross_attn.o_proj.weight",),
    r"cross_attention\.(\d+)\.attention_gate": (_GATED + "alpha_cross_attn",),
    r"cross_attention\.(\d+)\.feed_forward_gate": (_GATED + "alpha_dense",),
    r"cross_attention\.(\d+)\.feed_forward\.norm\.weight": (
        _GATED + "post_attention_layernorm.weight",
    ),
    r"cross_attention\.(\d+)\.feed_forward\.(gate|up|down)\.weight": (
        _GATED + r"mlp.\2_proj.weight",
    ),
}
"""Our tensors, and whose rows, one after the other, each of them holds."""

ADDITIONAL = {
    "model.embed_tokens.weight": "model.embed_tokens.additional_embedding.weight",
    "lm_head.weight": "lm_head.additional_fc.weight",
}
"""The rows of the tokens that came to LLaMA's, kept apart because they alone were trained."""


def open_idefics(folder: Path) -> Checkpoint:
    """Raises CheckpointError for a missing file, a config we cannot follow, and any missing,
    leftover or wrongly shaped tensor.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} is not an IDEFICS checkpoint: it lacks {missing}")
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    config = load_config(folder, special_tokens(tokenizer))
    check_tokenizer(tokenizer, config, folder / "tokenizer.json")
    weights = convert(open_model(folder), config, str(folder))
    return Checkpoint(config, tokenizer, Recipes(weights), str(folder))


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Only the instructed models know the end of an utterance; the others end a text."""
    is_instructed = tokenizer.token_to_id(END_OF_UTTERANCE) is not None
    end_of_chunk = END_OF_UTTERANCE if is_instructed else "</s>"
    return SpecialTokens(
        "<image>", end_of_chunk, end_of_text="</s>", begin="<s>", image_style="idefics"
    )


def load_config(folder: Path, tokens: SpecialTokens) -> FlamingoConfig:
    path, pixels = folder / "config.json", folder / "preprocessor_config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        shown = json.loads(pixels.read_text(encoding="utf-8")) if pixels.is_file() else {}
        return idefics_config(values, shown, folder.absolute().name, tokens)
    except (ValueError, OSError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def idefics_config(
    theirs: Mapping[str, Any], pixels: Mapping[str, Any], name: str, tokens: SpecialTokens
) -> FlamingoConfig:
    """Their config.json and preprocessor_config.json; ValueError names what we cannot do."""
    values = Values(DEFAULTS | dict(theirs))
    values.refuse_unless(
        model_type="idefics", use_resampler=True, hidden_act="silu", tie_word_embeddings=False
    )
    vision = vision_fields(Values(VISION_DEFAULTS | dict(values.get("vision_config") or {})))
    decoder = read_llama(values) | {
        "vocab_size": values["vocab_size"] + values["additional_vocab_size"]
    }
    fields = {
        "name": name,
        "vision": vision | {"mean": read(pixels, "image_mean"), "std": read(pixels, "image_std")},
        "resampler": resampler_fields(values, vision["dim"]),
        "cross_attention": cross_attention_fields(values, build(DecoderConfig, decoder)),
        "decoder": decoder,
        "tokens": vars(tokens),
        "templates": "idefics",
    }
    return FlamingoConfig.from_dict(fields)


def read(pixels: Mapping[str, Any], key: str) -> Any:
    return pixels.get(key, PIXEL_DEFAULTS[key])


def vision_fields(vision: Values) -> Fields:
    vision.refuse_unless(num_channels=3)
    return {
        "kind": "idefics",
        "keep_class_token": True,
        "image_size": vision["image_size"],
        "dim": vision["embed_dim"],
        "patch_size": vision["patch_size"],
        "num_layers": vision["num_hidden_layers"],
        "num_heads": vision["num_attention_heads"],
        "ff_dim": vision["intermediate_size"],
        "activation": vision["hidden_act"],
        "norm_eps": vision["layer_norm_eps"],
        "transform": "squash",
    }


def resampler_fields(values: Values, dim: int) -> Fields:
    resampler = Values(RESAMPLER_DEFAULTS | dict(values.get("perceiver_config") or {}))
    return {
        "dim": dim,
        "activation": "relu",
        "num_latents": resampler["resampler_n_latents"],
        "num_layers": resampler["resampler_depth"],
        "num_heads": resampler["resampler_n_heads"],
        "head_dim": resampler["resampler_head_dim"],
        "num_time_embeddings": 0,
        "query_key_norm": resampler["qk_layer_norms_perceiver"],
    }


def cross_attention_fields(values: Values, decoder: DecoderConfig) -> Fields:
    if (gates := values["alpha_type"]) not in ("float", "vector"):
        raise ValueError(f"alpha_type {gates!r} is not supported; supported: 'float', 'vector'")
    return {
        "kind": "idefics",
        "media_rule": "until_end_of_text",
        "norm_media": False,
        "interval": values["cross_layer_interval"],
        "num_heads": decoder.num_heads,
        "head_dim": decoder.head_dim,
        "ff_dim": decoder.ff_dim,
        "norm_eps": decoder.norm_eps,
        "query_key_norm": values["qk_layer_norms"],
        "has_vector_gates": gates == "vector",
    }


def convert(theirs: Mapping[str, Tensor], config: FlamingoConfig, where: str) -> dict[str, Tensor]:
    """Their tensors as the model's. Raises CheckpointError naming those that do not fit."""
    table = theirs.get("model.embed_tokens.weight")
    has_additional = table is not None and len(table) < config.decoder.vocab_size
    found = dict[str, Tensor]()
    used, missing, misfits = set[str](), set[str](), set[str]()
    for ours, expected in empty_model(config, len(theirs), where).state_dict().items():
        if not expected.numel():  # time embeddings, of which IDEFICS has none
            found[ours] = torch.zeros(expected.shape)
            continue
        names = sources(ours, has_additional)
        used.update(names)
        if lacking := [name for name in names if name not in theirs]:
            missing.update(lacking)
            continue
        try:
            found[ours] = joined([theirs[name] for name in names], expected)
        except RuntimeError:
            shapes = ", ".join(f"{name} {list(theirs[name].shape)}" for name in names)
            misfits.add(f"{shapes} for {list(expected.shape)}")
    leftover = {k for k in theirs.keys() - used if not re.fullmatch(HARMLESS, k)}
    complain(where, {"missing": missing, "leftover": leftover, "wrongly shaped": misfits})
    return found


def sources(ours: str, has_additional: bool = True) -> tuple[str, ...]:
    """`resampler.layers.0.to_kv.weight` → the names of their k_proj and their v_proj"""
    for pattern, theirs in SOURCES.items():
        if match := re.fullmatch(pattern, ours):
            return tuple(match.expand(name) for name in theirs)
    name = LLAMA.their_name(ours.removeprefix("decoder."))
    return (name, ADDITIONAL[name]) if has_additional and name in ADDITIONAL else (name,)


def joined(parts: list[Tensor], expected: Tensor) -> Tensor:
    """One below the other; gates lose their dimensions of one.

    Raises RuntimeError if the shape differs.
    """
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    if expected.dim() < 2:
        whole = whole.squeeze()
    if whole.shape != expected.shape:
        raise RuntimeError(f"{list(whole.shape)} is not {list(expected.shape)}")
    return whole

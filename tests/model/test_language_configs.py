"""A published config.json in the decoder's words, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flamingo_model.checkpoints.language_models import (
    decoder_config,
)
from flamingo_model.config import DECODER_CHOICES, DecoderConfig
from flamingo_model.decoder import ACTIVATIONS, BLOCKS, NORMS
from flamingo_model.positions import POSITIONS
from language import (
    MOSAIC,
    THEIRS,
    llama,
    neox,
)
from tiny import tiny_config


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope type 'llama3'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "'linear'"),
        ("llama", {"hidden_act": "mish"}, "hidden_act 'mish' is not known"),
        ("llama", {"num_key_value_heads": 4}, "multiple of decoder.num_kv_heads"),
        ("llama", {"num_key_value_heads": 0}, "num_kv_heads must be at least 1"),
        ("llama", {"hidden_size": 50}, "hidden_size 50 is not a multiple"),
        ("llama", {"hidden_size": "48"}, "wrong type"),
        ("llama", {"num_hidden_layers": "3"}, "num_layers must be int"),
        ("mistral", {"attention_bias": True}, "attention_bias True is not supported"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be at least 1"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine False"),
        ("opt", {"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention True"),
        ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings True"),
        ("gptj", {"rotary_dim": 3}, "rotary_dim must be even"),
        ("gptj", {"rotary_dim": 10}, "rotary_dim must be even and at most"),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "clip_qkv 6"),
        ("mpt", {"attn_config": {"alibi": False}}, "alibi False"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln True"),
        ("mpt", {"attn_config": {"softmax_scale": 0.5}}, "softmax_scale 0.5"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix_lm True"),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "multiquery_attention"),
        ("mpt", {"attn_config": {"alibi_bias_max": 4}}, "alibi_bias_max 4"),
        ("mpt", {"no_bias": False}, "no_bias False"),
        ("mpt", {"logit_scale": 0.1}, "logit_scale 0.1"),
        ("mpt", {"norm_type": "rmsnorm"}, "norm_type 'rmsnorm'"),
        ("mpt", {"model_type": "bloom"}, "model_type 'bloom' is not known"),
    ],
)
def test_what_we_cannot_do_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        decoder_config(THEIRS[name]().to_dict() | change)
    assert said in str(caught.value)


@pytest.mark.parametrize("change", [{"alibi": False}, {"attn_clip_qkv": 6}, {"no_bias": False}])
def test_other_kinds_of_mosaic_gpt_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{[*change][0]} .* is not supported"):
        decoder_config(MOSAIC | change)


def test_a_config_that_lacks_a_size_is_refused() -> None:
    values = {k: v for k, v in MOSAIC.items() if k != "n_heads"}
    with pytest.raises(ValueError, match="the config lacks 'n_heads'"):
        decoder_config(values)


def test_the_first_llama_files_do_not_say_their_length() -> None:
    values = llama(10_000.0).to_dict()
    del values["max_position_embeddings"]
    assert decoder_config(values).max_positions == 2048


def test_older_files_keep_rotary_settings_among_the_others() -> None:
    old = {"rope_theta": 500_000.0, "rope_scaling": None, "rope_parameters": None}
    assert decoder_config(llama(1.0).to_dict() | old).rope_theta == 500_000.0
    old = {"rotary_emb_base": 5_000, "rotary_pct": 0.5, "rope_parameters": None}
    config = decoder_config(neox(1.0, True).to_dict() | old)
    assert (config.rope_theta, config.rotary_dim) == (5_000, 4)


@pytest.mark.parametrize(
    ("name", "table"),
    [("norm", NORMS), ("block", BLOCKS), ("positions", POSITIONS), ("activation", ACTIVATIONS)],
)
def test_every_choice_has_an_entry_and_others_are_refused(name: str, table: Any) -> None:
    assert set(DECODER_CHOICES[name]) == set(table)
    with pytest.raises(ValueError, match=f"decoder.{name} 'other' is not known"):
        DecoderConfig(1, 1, 1, 1, 2, 1, 1, **{name: "other"})


def test_a_tied_head_has_no_bias() -> None:
    with pytest.raises(ValueError, match="head_bias needs a head of its own"):
        DecoderConfig(1, 1, 1, 1, 2, 1, 1, head_bias=True)


@pytest.mark.parametrize("name", THEIRS)
def test_a_read_config_survives_our_own_file(name: str) -> None:
    config = replace(tiny_config(), decoder=decoder_config(THEIRS[name]().to_dict()))
    assert type(config).from_dict(json.loads(config.to_json())) == config

"""Tensor names of published language models: exactly those, or an error that names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_model.checkpoints.language_models import (
    decoder_weights,
    load_decoder,
)
from flamingo_model.checkpoints.weights import CheckpointError
from language import (
    IDS,
    MOSAIC,
    converted,
    dense,
    deviation,
    mosaic_weights,
    our_model,
    their_model,
)


def spoiled(name: str, spoil: Callable[[dict[str, Tensor]], Any]) -> str:
    """What is said about the state dict of a model after `spoil`."""
    theirs = their_model(name)
    weights = dict(theirs.state_dict())
    spoil(weights)
    with pytest.raises(CheckpointError) as caught:
        decoder_weights(theirs.config.to_dict(), weights, "here")
    return str(caught.value)


EACH = ["opt-350m", "gpt2", "gptj", "neox-parallel-quarter", "llama", "mistral", "mpt"]


@pytest.mark.parametrize("name", EACH)
def test_a_missing_tensor_is_named_as_its_file_would(name: str) -> None:
    theirs = their_model(name)
    for key in sorted(set(theirs.state_dict()) - {"lm_head.weight", "embed_out.weight"}):
        weights = dict(theirs.state_dict())
        del weights[key]
        if theirs.config.tie_word_embeddings:
            weights.pop("lm_head.weight")  # or it would stand in for the embedding
        with pytest.raises(CheckpointError) as caught:
            decoder_weights(theirs.config.to_dict(), weights)
        assert f"missing: ['{key}']" in str(caught.value)


@pytest.mark.parametrize("name", EACH)
def test_every_leftover_tensor_is_named(name: str) -> None:
    extra = ("lora.weight", "model.layers.0.extra.weight", "transformer.h.0.attn.c_attn.scale")
    said = spoiled(name, lambda w: w.update({key: torch.zeros(1) for key in extra}))
    assert "leftover" in said and all(key in said for key in extra)


def test_a_bias_that_the_config_denies_is_left_over() -> None:
    bias = "transformer.blocks.0.norm_1.bias"
    assert f"leftover: ['{bias}']" in spoiled("mpt", lambda w: w.update({bias: torch.zeros(48)}))


def test_a_layer_too_many_is_left_over() -> None:
    key = "model.layers.3.input_layernorm.weight"
    assert f"leftover: ['{key}']" in spoiled("llama", lambda w: w.update({key: torch.ones(48)}))


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", (79, 48)),
        ("gpt2", "transformer.h.1.attn.c_attn.weight", (48, 143)),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", (192, 48)),
        ("neox-parallel-quarter", "gpt_neox.layers.1.attention.query_key_value.bias", (143,)),
        ("mpt", "transformer.blocks.1.attn.Wqkv.weight", (1, 48)),
    ],
)
def test_a_wrong_shape_is_named(name: str, key: str, shape: tuple[int, ...]) -> None:
    said = spoiled(name, lambda weights: weights.update({key: torch.zeros(shape)}))
    assert "wrongly shaped" in said and key in said


def test_a_tied_head_that_differs_from_the_embedding_is_refused() -> None:
    said = spoiled("gpt2", lambda w: w.update({"lm_head.weight": torch.zeros(60, 48)}))
    assert "one tensor with two values" in said and "lm_head.weight" in said


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("gpt2", ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")),
        ("gptj", ("transformer.h.2.attn.bias", "transformer.h.2.attn.masked_bias")),
        (
            "neox-parallel-quarter",
            (
                "gpt_neox.layers.0.attention.bias",
                "gpt_neox.layers.0.attention.masked_bias",
                "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
            ),
        ),
        ("llama", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    ],
)
def test_buffers_of_older_files_are_passed_over(name: str, keys: tuple[str, ...]) -> None:
    theirs = their_model(name)
    weights = dict(theirs.state_dict()) | {key: torch.zeros(1) for key in keys}
    our_model(theirs.config.to_dict(), weights)


@pytest.mark.parametrize("name", EACH)
def test_names_may_lack_the_outer_prefix(name: str) -> None:
    theirs = their_model(name)
    base = f"{theirs.base_model_prefix}."
    bare = {key.removeprefix(base): v for key, v in theirs.state_dict().items()}
    ours, usual = our_model(theirs.config.to_dict(), bare), converted(theirs)
    assert all(torch.equal(v, usual.state_dict()[k]) for k, v in ours.state_dict().items())


def test_the_head_of_neox_has_two_names() -> None:
    theirs = their_model("neox-parallel-quarter")
    weights = dict(theirs.state_dict())
    head = weights.pop("lm_head.weight", None)
    weights["embed_out.weight"] = weights["embed_out.weight"] if head is None else head
    for name in ("embed_out.weight", "lm_head.weight"):
        renamed = {k: v for k, v in weights.items() if k != "embed_out.weight"}
        renamed[name] = weights["embed_out.weight"]
        ours = our_model(theirs.config.to_dict(), renamed)
        assert torch.equal(ours.head.weight, weights["embed_out.weight"])


def test_pieces_of_a_fused_tensor_do_not_share_memory() -> None:
    theirs = their_model("mpt")
    ours = decoder_weights(theirs.config.to_dict(), theirs.state_dict())
    places = {ours[f"layers.0.{part}.weight"].untyped_storage().data_ptr() for part in "qkv"}
    assert len(places) == 3


# Files


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@pytest.mark.parametrize("name", ["opt-350m", "neox-parallel-quarter", "mistral"])
def test_a_saved_model_loads(name: str, shards: str, tmp_path: Path) -> None:
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    with torch.no_grad():
        assert deviation(dense(load_decoder(tmp_path), IDS), theirs(IDS).logits) < 1e-5


def test_a_torch_file_loads_too_and_in_another_dtype(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOSAIC))
    torch.save(mosaic_weights(), tmp_path / "pytorch_model.bin")
    decoder = load_decoder(tmp_path, torch.bfloat16)
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in decoder.parameters()) and not decoder.training


def test_a_folder_without_weights_or_with_a_broken_config_is_refused(tmp_path: Path) -> None:
    for text, said in (("{", "config.json"), ("[]", "config.json"), (None, "holds neither")):
        (tmp_path / "config.json").write_text(json.dumps(MOSAIC) if text is None else text)
        with pytest.raises(CheckpointError, match=said):
            load_decoder(tmp_path)


def test_a_torch_file_that_is_no_flat_state_dict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOSAIC))
    torch.save({"model": {}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a flat state dict"):
        load_decoder(tmp_path)

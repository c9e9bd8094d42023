"""Every language model of the family against transformers' own, by every way through ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from flamingo_model.attention import CachedSelfAttention, DenseSelfAttention
from flamingo_model.cache import SelfAttentionCache
from flamingo_model.checkpoints.language_models import (
    FAMILIES,
    decoder_config,
    decoder_weights,
    load_decoder,
)
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.config import DECODER_CHOICES, DecoderConfig
from flamingo_model.decoder import ACTIVATIONS, BLOCKS, NORMS, Decoder
from flamingo_model.positions import POSITIONS, Reach, reach
from forward import Chunk, flat_batch
from tiny import tiny_config

LENGTH = 20
IDS = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0))
USUAL = {
    "vocab_size": 60,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
}
OPT = {**USUAL, "ffn_dim": 80}
GPT = {"vocab_size": 60, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 40}
NEOX = {**USUAL, "intermediate_size": 80}
LLAMA = {**USUAL, "intermediate_size": 80}
MPT = {"vocab_size": 60, "d_model": 48, "n_layers": 3, "max_seq_len": 40}


def neox(share: float, parallel: bool) -> hf.PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": share}
    return hf.GPTNeoXConfig(**NEOX, rope_parameters=rope, use_parallel_residual=parallel)


def llama(theta: float, **options: Any) -> hf.PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": theta}
    return hf.LlamaConfig(**LLAMA, rope_parameters=rope, **options)


THEIRS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "opt": lambda: hf.OPTConfig(**OPT),
    "opt-350m": lambda: hf.OPTConfig(**OPT, do_layer_norm_before=False, word_embed_proj_dim=24),
    "opt-without-biases": lambda: hf.OPTConfig(**OPT, enable_bias=False),
    "opt-without-final-norm": lambda: hf.OPTConfig(**OPT, _remove_final_layer_norm=True),
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gpt2-inner": lambda: hf.GPT2Config(**GPT, n_inner=72, activation_function="relu"),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=4),
    "neox-parallel-quarter": lambda: neox(0.25, True),
    "neox-parallel-whole": lambda: neox(1.0, True),
    "neox-sequential-quarter": lambda: neox(0.25, False),
    "neox-sequential-whole": lambda: neox(1.0, False),
    "llama": lambda: llama(10_000.0),
    "llama-theta": lambda: llama(500_000.0, num_key_value_heads=2, head_dim=12),
    "llama-biases": lambda: llama(10_000.0, attention_bias=True, mlp_bias=True),
    "llama-tied": lambda: llama(10_000.0, tie_word_embeddings=True),
    "mistral": lambda: hf.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=5),
    "mistral-whole": lambda: hf.MistralConfig(**LLAMA, num_key_value_heads=3, sliding_window=None),
    "mpt": lambda: hf.MptConfig(**MPT, n_heads=4),
    "mpt-6-heads": lambda: hf.MptConfig(**MPT, n_heads=6),
}


def their_model(name: str) -> hf.PreTrainedModel:
    """Tiny and random, norms and biases too."""
    torch.manual_seed(0)
    config = THEIRS[name]()
    config._attn_implementation = "eager"
    model: hf.PreTrainedModel = hf.AutoModelForCausalLM.from_config(config).eval()
    shake(model)
    return model


def shake(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def our_model(values: dict[str, Any], weights: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(decoder_config(values)).eval().requires_grad_(False)
    decoder.load_state_dict(decoder_weights(values, weights))
    return decoder


def converted(theirs: hf.PreTrainedModel) -> Decoder:
    return our_model(theirs.config.to_dict(), theirs.state_dict())


def dense(decoder: Decoder, ids: Tensor) -> Tensor:
    """Logits [B, T, vocab]"""
    attend = DenseSelfAttention(*ids.shape, reach=reach(decoder.config))
    return decoder.logits(decoder(ids, torch.arange(ids.shape[1]).expand(ids.shape), attend))


class Rows:
    """A decoder with its cache, stepped as the engine's runner does."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        config = replace(tiny_config(), decoder=decoder.config)
        self.cache = SelfAttentionCache(config, 3, LENGTH)
        for cache in (self.cache.k, self.cache.v):
            cache.fill_(9.0)  # what an older sequence left behind

    def step(self, *prefills: Chunk, decodes: tuple[Chunk, ...] = ()) -> list[Tensor]:
        batch = flat_batch(decodes, prefills)
        attend = CachedSelfAttention(self.cache, batch)
        logits = self.decoder.logits(self.decoder(batch.token_ids, batch.positions, attend))
        return list(logits.split([len(c.ids) for c in (*decodes, *prefills)]))


def chunk(row: int, begin: int, end: int) -> Chunk:
    return Chunk(row, IDS[row, begin:end].tolist(), [-1] * (end - begin), begin)


def in_one_prefill(decoder: Decoder) -> Tensor:
    return torch.stack(Rows(decoder).step(chunk(0, 0, LENGTH), chunk(1, 0, LENGTH)))


def in_chunks(decoder: Decoder) -> Tensor:
    rows, bounds = Rows(decoder), pairwise([0, 3, 4, 13, LENGTH])
    steps = [rows.step(chunk(0, *cut), chunk(1, *cut)) for cut in bounds]
    return torch.stack([torch.cat(parts) for parts in zip(*steps, strict=True)])


def token_by_token(decoder: Decoder) -> Tensor:
    """The second row is one token behind, so that rows of unequal length decode together."""
    rows, found = Rows(decoder), ([], [])
    for at in range(LENGTH + 1):
        cuts = [(row, at - row) for row in (0, 1) if 0 <= at - row < LENGTH]
        steps = rows.step(decodes=tuple(chunk(row, i, i + 1) for row, i in cuts))
        for (row, _), logits in zip(cuts, steps, strict=True):
            found[row].append(logits)
    return torch.stack([torch.cat(parts) for parts in found])


WAYS = (in_one_prefill, in_chunks, token_by_token)


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
def test_logits_are_those_of_transformers(name: str, record_property: Any) -> None:
    theirs = their_model(name)
    found = deviation(dense(converted(theirs), IDS), theirs(IDS).logits)
    record_property("deviation", found)
    assert found < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", THEIRS)
def test_cached_ways_equal_the_dense_one(name: str, way: Callable[[Decoder], Tensor]) -> None:
    decoder = converted(their_model(name))
    assert deviation(way(decoder), dense(decoder, IDS)) < 1e-5


# MPT-1B, which transformers does not have, written out plainly.

MOSAIC = {
    "model_type": "mosaic_gpt",
    "vocab_size": 60,
    "d_model": 48,
    "n_layers": 2,
    "n_heads": 6,
    "max_seq_len": 40,
    "mlp_ratio": 4,
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_qk_ln": True,
    "no_bias": True,
}


def mosaic_weights() -> dict[str, Tensor]:
    generator, dim = torch.Generator().manual_seed(0), MOSAIC["d_model"]
    shapes = {"transformer.wte.weight": (60, dim), "transformer.ln_f.weight": (dim,)}
    for layer in range(MOSAIC["n_layers"]):
        block = f"transformer.blocks.{layer}."
        shapes |= {f"{block}{n}.weight": (dim,) for n in ("ln_1", "ln_2", "attn.q_ln", "attn.k_ln")}
        shapes |= {
            f"{block}attn.Wqkv.weight": (3 * dim, dim),
            f"{block}attn.out_proj.weight": (dim, dim),
            f"{block}mlp.mlp_up.weight": (4 * dim, dim),
            f"{block}mlp.mlp_down.weight": (dim, 4 * dim),
        }
    return {k: torch.randn(shape, generator=generator) * 0.3 for k, shape in shapes.items()}


def mosaic_logits(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """One sequence, one head after the other."""
    dim, heads = MOSAIC["d_model"], MOSAIC["n_heads"]
    size, length = dim // heads, len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), weights[f"{name}.weight"], None, 1e-5)

    x = weights["transformer.wte.weight"][ids]
    for layer in range(MOSAIC["n_layers"]):
        block = f"transformer.blocks.{layer}."
        qkv = norm(x, f"{block}ln_1") @ weights[f"{block}attn.Wqkv.weight"].T
        q, k, v = qkv[:, :dim], qkv[:, dim : 2 * dim], qkv[:, 2 * dim :]
        q, k = norm(q, f"{block}attn.q_ln"), norm(k, f"{block}attn.k_ln")
        outs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            slope = 1 / 2 ** ((head + 1) * 8 / heads)
            for i in range(length):
                for j in range(length):
                    scores[i, j] = scores[i, j] - slope * (i - j) if j <= i else -math.inf
            outs.append(scores.softmax(-1) @ v[:, part])
        x = x + torch.cat(outs, -1) @ weights[f"{block}attn.out_proj.weight"].T
        up = norm(x, f"{block}ln_2") @ weights[f"{block}mlp.mlp_up.weight"].T
        x = x + F.gelu(up) @ weights[f"{block}mlp.mlp_down.weight"].T
    return norm(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T


@torch.no_grad()
def test_mpt_1b_is_as_written() -> None:
    weights = mosaic_weights()
    expected = torch.stack([mosaic_logits(weights, row) for row in IDS.tolist()])
    assert deviation(dense(our_model(MOSAIC, weights), IDS), expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_mpt_1b_cached_equals_dense(way: Callable[[Decoder], Tensor]) -> None:
    decoder = our_model(MOSAIC, mosaic_weights())
    assert deviation(way(decoder), dense(decoder, IDS)) < 1e-5


def test_mpt_1b_slopes_are_not_rounded_and_follow_the_configs_bias() -> None:
    assert reach(decoder_config(MOSAIC)).slopes == tuple(2 ** (-8 * i / 6) for i in range(1, 7))
    gentle = reach(decoder_config(MOSAIC | {"alibi_bias_max": 6})).slopes
    assert gentle == tuple(2.0**-i for i in range(1, 7))


# Names and shapes


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
    names = set(their_model(name).state_dict()) - {"lm_head.weight", "embed_out.weight"}
    for key in sorted(names):
        said = spoiled(name, lambda weights, key=key: (weights.pop(key), tied(weights)))
        assert f"missing: ['{key}']" in said


def tied(weights: dict[str, Tensor]) -> None:
    """The head of a tied model would stand in for its embedding."""
    weights.pop("lm_head.weight", None)


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


def test_every_family_is_read_and_compared_here() -> None:
    compared = {make().model_type for make in THEIRS.values()} | {MOSAIC["model_type"]}
    assert compared == set(FAMILIES)


# Configs


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


# Reach


def test_a_window_counts_the_token_itself() -> None:
    at = torch.arange(4)
    seen = Reach(window=2).seen(at, at)[0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_a_slope_is_a_handicap_per_step_back() -> None:
    mask = Reach(slopes=(0.5,)).mask(torch.arange(3), torch.arange(3), torch.float32)
    far = -math.inf
    assert mask.tolist() == [[[0, far, far], [-0.5, 0, far], [-1, -0.5, 0]]]


def test_window_and_slope_go_together() -> None:
    both = Reach(slopes=(1.0,), window=2)
    mask = both.mask(torch.tensor([3]), torch.arange(4), torch.float32)
    assert mask.tolist() == [[[-math.inf, -math.inf, -1, 0]]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["mpt-6-heads", "mistral", "opt-350m"])
def test_bfloat16_stays_bfloat16_on_every_way(name: str) -> None:
    decoder = converted(their_model(name)).bfloat16()
    rows = Rows(decoder)
    rows.cache.k, rows.cache.v = rows.cache.k.bfloat16(), rows.cache.v.bfloat16()
    [first] = rows.step(chunk(0, 0, 5))
    [second] = rows.step(decodes=(chunk(0, 5, 6),))
    cached, whole = torch.cat([first, second]), dense(decoder, IDS[:1, :6])[0]
    assert cached.dtype == whole.dtype == torch.bfloat16
    assert deviation(cached.float(), whole.float()) < 0.05

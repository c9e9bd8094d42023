"""Every language model of the family, tiny and random, and every way through our decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from flamingo_model.attention import DenseSelfAttention
from flamingo_model.cache import BlockCache
from flamingo_model.checkpoints.language_models import (
    decoder_config,
    decoder_weights,
)
from flamingo_model.decoder import Decoder
from flamingo_model.paged_attention import CachedSelfAttention
from flamingo_model.positions import reach
from forward import Chunk, Layout, flat_batch
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
    attend = DenseSelfAttention(*ids.shape, reach(decoder.config))
    return decoder.logits(decoder(ids, torch.arange(ids.shape[1]).expand(ids.shape), attend))


class Rows:
    """A decoder with its cache, stepped as the engine's runner does."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        config = replace(tiny_config(), decoder=decoder.config)
        self.layout = Layout(3, LENGTH)
        self.cache = BlockCache(config, self.layout.num_blocks, self.layout.block_size)
        for cache in (self.cache.k, self.cache.v):
            cache[:, self.layout.block_size :] = 9.0  # what an older sequence left behind

    def step(self, *prefills: Chunk, decodes: tuple[Chunk, ...] = ()) -> list[Tensor]:
        batch = flat_batch(decodes, prefills, self.layout)
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


def mosaic_logits(
    config: dict[str, Any],
    weights: dict[str, Tensor],
    ids: list[int],
    before_layer: Callable[[int, Tensor], Tensor] = lambda layer, x: x,
) -> Tensor:
    """MPT-1B, which transformers does not have, plainly: one sequence, one head after the other."""
    dim, heads = config["d_model"], config["n_heads"]
    size, length = dim // heads, len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), weights[f"{name}.weight"], None, 1e-5)

    x = weights["transformer.wte.weight"][ids]
    for layer in range(config["n_layers"]):
        x, block = before_layer(layer, x), f"transformer.blocks.{layer}."
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

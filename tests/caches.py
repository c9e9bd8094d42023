"""Filled caches, and batches of tokens that read them: for tests of attention by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flamingo_model.cache import BlockCache
from flamingo_model.paged_attention import Batch, Span
from forward import Layout
from tiny import tiny_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [1, 4, 5, 17, 48]  # with blocks of 4: one key, whole blocks, all there are

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_heads": 6, "num_kv_heads": 2},
    "alibi": {"positions": "alibi", "num_heads": 3},
    "alibi-grouped": {"positions": "alibi_unrounded", "num_heads": 4, "num_kv_heads": 2},
    "window": {"sliding_window": 5},
    "one-head": {"num_kv_heads": 1},
    "odd-dims": {"head_dim": 12},
}


def filled_cache(kind: str, dtype: torch.dtype = torch.float32) -> BlockCache:
    """Every block but the padding one holds something."""
    decoder = replace(tiny_config().decoder, **KINDS[kind])
    config = replace(tiny_config(), decoder=decoder)
    layout = scattered(len(LENGTHS))
    cache = BlockCache(config, layout.num_blocks, layout.block_size, DEVICE, dtype)
    for x, seed in ((cache.k, 1), (cache.v, 2)):
        x[:, layout.block_size :] = noise(*x[:, layout.block_size :].shape, seed=seed).to(dtype)
    return cache


def scattered(num_rows: int) -> Layout:
    return Layout(num_rows, max(LENGTHS), is_scattered=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def integers(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=DEVICE)


def decoding(lengths: list[int], *spans: Span) -> Batch:
    """One row per length, then the tokens of spans in rows of their own."""
    layout = scattered(len(LENGTHS))
    tokens = [(row, length - 1) for row, length in enumerate(lengths)]
    for row, span in enumerate(spans, start=len(lengths)):
        tokens += [(row, at) for at in range(span.start, span.stop)]
    return Batch(
        token_ids=integers([0] * len(tokens)),
        positions=integers([at for _, at in tokens]),
        places=integers([layout.place(row, at) for row, at in tokens]),
        decodes=tuple(layout.blocks(row) for row in range(len(lengths))),
        media_slots=integers([-1] * len(lengths)),
        spans=spans,
        runs=(),
    )


def queries(cache: BlockCache, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of new tokens; the scores are far apart."""
    heads = len(cache.reach.slopes) or 6
    kv_heads, dim = cache.k.shape[-2:]
    heads = heads if heads % kv_heads == 0 else kv_heads
    shapes = (heads, kv_heads, kv_heads)
    q, k, v = (noise(num, n, dim, seed=i).to(cache.k.dtype) for i, n in enumerate(shapes))
    return 3 * q, k, v

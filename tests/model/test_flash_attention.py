"""Attention by block tables against the portable one: in plain torch, and with Triton's kernels.

Without a GPU the kernels run in Triton's interpreter, where Triton is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_model import cuda_attention
from flamingo_model.cache import BlockCache, MediaSlots
from flamingo_model.cuda_attention import (
    Attend,
    FlashSelfAttention,
    Table,
    flash_attend,
    gathered_attend,
    num_parts,
)
from flamingo_model.paged_attention import (
    Batch,
    CachedCrossAttention,
    CachedSelfAttention,
    Span,
)
from forward import Layout
from tiny import tiny_config

# Triton 3.9 announces a new default of its own.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")

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


@pytest.fixture(params=["whole", "tiled", "split"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys in one go, one tile after the other, or by several programs, 16 keys each."""
    monkeypatch.setattr(cuda_attention, "TILE_NUMBERS", 4096 if request.param == "whole" else 1)
    monkeypatch.setattr(cuda_attention, "PART_KEYS", 8 if request.param == "split" else 128)


@pytest.fixture(params=["gathered", "flash"])
def attend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attend:
    if request.param == "gathered":
        return gathered_attend
    if DEVICE == "cpu":  # read when the kernels are first imported
        monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    return flash_attend


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


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_rows_see_what_the_portable_way_shows(attend: Attend, kind: str) -> None:
    batch, caches = decoding(LENGTHS), (filled_cache(kind), filled_cache(kind))
    new = queries(caches[0], len(LENGTHS))
    found = FlashSelfAttention(caches[0], batch, attend)(1, *new)
    expected = CachedSelfAttention(caches[1], batch)(1, *new)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(caches[0].k, caches[1].k) and torch.equal(caches[0].v, caches[1].v)


@pytest.mark.parametrize("length", range(1, 14))
def test_a_single_row_of_any_length(attend: Attend, length: int) -> None:
    batch, cache = decoding([length]), filled_cache("alibi")
    new = queries(cache, 1)
    found = FlashSelfAttention(cache, batch, attend)(1, *new)
    torch.testing.assert_close(found, CachedSelfAttention(cache, batch)(1, *new))


@pytest.mark.parametrize("kind", ["plain", "alibi", "window"])
def test_prompts_and_trees_run_beside_decoding_rows(attend: Attend, kind: str) -> None:
    layout, tree = scattered(len(LENGTHS)), torch.ones(3, 9, dtype=torch.bool, device=DEVICE)
    tree[2, 7] = False  # the last two are siblings
    spans = (
        Span(2, 8, 0, layout.blocks(2)),
        Span(8, 13, 10, layout.blocks(3)),
        Span(13, 16, 6, layout.blocks(4), integers([*range(7), 7, 7]), tree.tril(6)),
    )
    batch, caches = decoding([7, 30], *spans), (filled_cache(kind), filled_cache(kind))
    new = queries(caches[0], 16)
    found = FlashSelfAttention(caches[0], batch, attend)(0, *new)
    expected = CachedSelfAttention(caches[1], batch)(0, *new)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "alibi"])
def test_bfloat16_agrees_within_its_steps(attend: Attend, kind: str) -> None:
    cache, batch = filled_cache(kind, torch.bfloat16), decoding(LENGTHS)
    new = queries(cache, len(LENGTHS))
    found = FlashSelfAttention(cache, batch, attend)(0, *new)
    expected = CachedSelfAttention(cache, batch)(0, *new)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.usefixtures("cut")
def test_a_row_without_keys_gets_zero(attend: Attend) -> None:
    cache = filled_cache("plain")
    table = Table(integers([[3, 4, 5, 6, 7]] * 2), integers([0, 6]))
    out = attend(noise(2, 2, 16), *cache.in_blocks(0), table)
    assert (out[0] == 0).all() and (out[1] != 0).all()


def test_what_lies_beyond_the_length_is_not_seen_even_if_it_is_nan(attend: Attend) -> None:
    cache, table = filled_cache("plain"), Table(integers([[3, 9, 0]]), integers([6]))
    expected = attend(noise(1, 2, 16), *cache.in_blocks(0), table)
    for x in (cache.k, cache.v):
        x[:, 9 * 4 + 2 : 10 * 4] = torch.nan
    assert torch.equal(attend(noise(1, 2, 16), *cache.in_blocks(0), table), expected)


def test_media_are_seen_as_the_portable_way_shows_them(attend: Attend) -> None:
    media = MediaSlots(tiny_config(), 5, DEVICE)
    media.k, media.v = noise(*media.k.shape, seed=1), noise(*media.v.shape, seed=2)
    slots = integers([[-1, -1, 3], [-1, -1, -1], [0, 1, 2], [-1, 4, 3]])
    batch, q = replace(decoding([1] * 4), media_slots=slots), noise(4, 2, 8)
    table = Table(slots.flip(1).clamp(min=0), (slots >= 0).sum(1) * 4)
    found = attend(q, *media.in_blocks(1), table)
    torch.testing.assert_close(found, CachedCrossAttention(media, batch)(1, q))


@pytest.mark.parametrize(
    ("queries", "keys", "parts"), [(16, 2048, 16), (16, 128, 1), (512, 8192, 1), (1, 10**6, 512)]
)
def test_keys_are_split_where_there_are_few_queries(queries: int, keys: int, parts: int) -> None:
    assert num_parts(queries, keys) == parts


def test_the_kernels_compile_for_gpus() -> None:
    """Which needs no GPU, but a process that has interpreted nothing."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parents[1] / "compile_kernels.py"
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compiled", "8", "kernels"]

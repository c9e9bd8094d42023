"""Attention by block tables against the portable one: in plain torch, and with Triton's kernels.

Without a GPU the kernels run in Triton's interpreter, where Triton is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caches import (
    DEVICE,
    KINDS,
    LENGTHS,
    decoding,
    filled_cache,
    integers,
    noise,
    queries,
    scattered,
)
from flamingo_model import cuda_attention
from flamingo_model.cache import MediaSlots
from flamingo_model.cuda_attention import (
    Attend,
    FlashSelfAttention,
    Table,
    flash_attend,
    gathered_attend,
    num_parts,
)
from flamingo_model.paged_attention import CachedCrossAttention, CachedSelfAttention, Span
from tiny import tiny_config

# Triton 3.9 announces a new default of its own.
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")


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

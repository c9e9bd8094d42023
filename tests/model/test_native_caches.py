"""Attention through the caches by the C kernels against the portable one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from caches import KINDS, LENGTHS, decoding, filled_cache, integers, noise, queries, scattered
from flamingo_model.cache import BlockCache, MediaSlots
from flamingo_model.native_attention import NativeCrossAttention, NativeSelfAttention
from flamingo_model.paged_attention import (
    Batch,
    CachedCrossAttention,
    CachedSelfAttention,
    MediaRun,
    Span,
)
from our_kernels import needs_kernels
from tiny import tiny_config

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the caches lie on the GPU"),
]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def mixed() -> Batch:
    """Two decoding tokens, a prompt, its later chunk in another row, and a tree of candidates."""
    layout, tree = scattered(len(LENGTHS)), torch.ones(3, 9, dtype=torch.bool)
    tree[2, 7] = False  # the last two are siblings
    return decoding(
        [7, 30],
        Span(2, 8, 0, layout.blocks(2)),
        Span(8, 13, 10, layout.blocks(3)),
        Span(13, 16, 6, layout.blocks(4), integers([*range(7), 7, 7]), tree.tril(6)),
    )


def both(kind: str, batch: Batch, layer: int = 0) -> tuple[Tensor, Tensor]:
    """What the kernels and what the portable way answer; their caches are the same afterwards."""
    caches = filled_cache(kind), filled_cache(kind)
    new = queries(caches[0], len(batch.token_ids))
    found = NativeSelfAttention(caches[0], batch)(layer, *new)
    expected = CachedSelfAttention(caches[1], batch)(layer, *new)
    assert torch.equal(caches[0].k, caches[1].k) and torch.equal(caches[0].v, caches[1].v)
    return found, expected


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# Tokens and their own sequence


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_rows_see_what_the_portable_way_shows(kind: str) -> None:
    assert_close(*both(kind, decoding(LENGTHS), layer=1))


@pytest.mark.parametrize("length", range(1, 14))
def test_a_single_row_of_any_length(length: int) -> None:
    assert_close(*both("alibi", decoding([length])))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_trees_run_beside_decoding_rows(kind: str) -> None:
    assert_close(*both(kind, mixed()))


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_run_without_decoding_rows(kind: str) -> None:
    layout = scattered(len(LENGTHS))
    spans = Span(0, 48, 0, layout.blocks(0)), Span(48, 49, 47, layout.blocks(1))
    assert_close(*both(kind, decoding([], *spans)))


def test_neighbouring_blocks_and_scattered_ones_give_the_same_bits() -> None:
    together, apart = filled_cache("grouped"), filled_cache("grouped")
    places = [tuple(range(20, 32)), tuple(range(31, 19, -1))]
    q, k, v = queries(together, 48)
    found = []
    for cache, blocks in zip((together, apart), places, strict=True):
        batch = decoding([], Span(0, 48, 0, blocks))
        at = [block * 4 + i for block in blocks for i in range(4)]
        found.append(NativeSelfAttention(cache, replace(batch, places=integers(at)))(0, q, k, v))
    assert torch.equal(*found)


def test_trees_are_gathered_where_blocks_may_not_be_read_in_place() -> None:
    blocks = tuple(range(20, 32))
    span = Span(0, 3, 6, blocks, integers([*range(7), 7, 7]), torch.ones(3, 9, dtype=torch.bool))
    batch, cache = decoding([], span, Span(3, 6, 0, blocks)), filled_cache("plain")
    for in_place in (True, False):
        [place] = NativeSelfAttention(cache, batch, in_place).trees.span_places
        assert isinstance(place, slice) == in_place


def test_a_tokens_numbers_do_not_depend_on_the_batch() -> None:
    batch, cache = decoding(LENGTHS), filled_cache("alibi")
    q, k, v = queries(cache, len(LENGTHS))
    together = NativeSelfAttention(cache, batch)(0, q, k, v)
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        alone = replace(decoding([length]), places=batch.places[one], decodes=batch.decodes[one])
        found = NativeSelfAttention(cache, alone)(0, q[one], k[one], v[one])
        assert torch.equal(found, together[one])


# Tokens and pictures


def slots_of(num: int) -> MediaSlots:
    media = MediaSlots(tiny_config(), num)
    media.k, media.v = noise(*media.k.shape, seed=1), noise(*media.v.shape, seed=2)
    return media


def looking(slots: Tensor, *runs: MediaRun) -> Batch:
    return replace(decoding([1] * len(slots)), media_slots=slots, runs=runs)


@pytest.mark.parametrize(
    "slots",
    [[3, 3, 3], [0, -1, 4], [-1, -1, -1], [[-1, -1, 3], [-1, -1, -1], [0, 1, 2], [-1, 4, 3]]],
    ids=str,
)
def test_decoding_rows_see_their_pictures(slots: list[object]) -> None:
    media, batch, q = slots_of(5), looking(integers(slots)), noise(len(slots), 2, 8)
    expected = CachedCrossAttention(media, batch)(1, q)
    torch.testing.assert_close(NativeCrossAttention(media, batch)(1, q), expected)


@pytest.mark.parametrize("slots", [[4, -1], [[0, 1], [-1, -1]]], ids=["last", "all"])
def test_prompts_see_theirs_and_tokens_before_any_see_nothing(slots: list[object]) -> None:
    """Tokens 2 and 3 stand before any picture, the last two see several."""
    runs = MediaRun(2, 4, 9), MediaRun(0, 9, 10), MediaRun(4, 10, 12, earlier=(1, 3))
    media, batch, q = slots_of(5), looking(integers(slots), *runs), noise(12, 2, 8)
    found = NativeCrossAttention(media, batch)(1, q)
    torch.testing.assert_close(found, CachedCrossAttention(media, batch)(1, q))
    assert (found[1:4] == 0).all() and (found[4:] != 0).all()


def test_prompts_see_pictures_without_decoding_rows() -> None:
    batch = looking(integers([]), MediaRun(2, 1, 5))
    media, q = slots_of(5), noise(6, 2, 8)
    found = NativeCrossAttention(media, batch)(0, q)
    torch.testing.assert_close(found, CachedCrossAttention(media, batch)(0, q))
    assert (found[0] == 0).all() and (found[5] == 0).all()


def test_what_others_left_in_a_block_is_not_seen_even_if_it_is_nan() -> None:
    expected, _ = both("plain", mixed())
    cache, batch = filled_cache("plain"), mixed()
    soil_unused(cache, batch)
    assert torch.equal(NativeSelfAttention(cache, batch)(0, *queries(cache, 16)), expected)


def soil_unused(cache: BlockCache, batch: Batch) -> None:
    """NaN behind the last key of every decoding row and prompt."""
    lengths = (batch.positions[: batch.num_decoding] + 1).tolist()
    tables = [*zip(batch.decodes, lengths, strict=True)]
    tables += [(span.blocks, span.stop) for span in batch.spans]
    for blocks, length in tables:
        for place in range(length, len(blocks) * 4):
            where = blocks[place // 4] * 4 + place % 4
            cache.k[:, where], cache.v[:, where] = torch.nan, torch.nan

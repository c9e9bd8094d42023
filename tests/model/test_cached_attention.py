"""Every fast path against the slow one: cached = dense, chunked = whole, batched = alone."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamingo_model.attention import DenseSelfAttention
from flamingo_model.positions import Reach
from forward import IMAGE, Cached, Chunk, dense, document, pictures
from tiny import tiny_model

NONE = [10, 11, 12, 13, 14, 15]
ONE = [20, IMAGE, 21, 22]
THREE = [IMAGE, 30, IMAGE, IMAGE, 31, 32, 33]
MODEL = tiny_model()


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def shown(num: int, first: int = 0) -> Cached:
    cached = Cached(MODEL)
    cached.show(list(range(first, first + num)), pictures(num))
    return cached


@pytest.mark.parametrize("ids", [NONE, ONE, THREE], ids=["none", "one", "three"])
def test_prefill_equals_the_dense_pass(ids: list[int]) -> None:
    num = ids.count(IMAGE)
    cached = shown(num, first=2) if num else Cached(MODEL)
    [logits] = cached.step(document(ids, row=1, first_slot=2))
    close(logits, dense(MODEL, ids, pictures(max(num, 1))))


@pytest.mark.parametrize("interval", [2, 3])
def test_prefill_equals_the_dense_pass_with_fewer_blocks(interval: int) -> None:
    model = tiny_model(interval=interval)
    cached = Cached(model)
    cached.show([0, 1, 2], pictures(3))
    close(cached.step(document(THREE))[0], dense(model, THREE, pictures(3)))


@given(
    ids=st.lists(st.sampled_from([IMAGE, 7, 8, 9]), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 8), max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_any_chunks_then_tokens_one_by_one_equal_one_pass(ids: list[int], cuts: set[int]) -> None:
    cached, whole = shown(8), document(ids)
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(ids))]
    logits = []
    for begin, end in pairwise(bounds):
        logits += cached.step(whole.cut(begin, end))
    for i in range(bounds[-1], len(ids)):
        logits += cached.step(decodes=[whole.cut(i, i + 1)])
    close(torch.cat(logits), dense(MODEL, ids, pictures(8)))


def test_prefill_in_two_chunks_equals_one() -> None:
    whole = document(THREE)
    [at_once] = shown(3).step(whole)
    for cut in range(1, len(THREE)):
        cached = shown(3)
        halves = [cached.step(whole.cut(0, cut))[0], cached.step(whole.cut(cut))[0]]
        close(torch.cat(halves), at_once)


def test_a_mixed_batch_equals_each_sequence_alone() -> None:
    cached = Cached(MODEL)
    cached.show([5, 0, 1, 2], pictures(4))
    none, one, three = document(NONE, 3), document(ONE, 0, 5), document(THREE, 2)
    late = document(ONE, 1, 5)
    cached.step(none.cut(0, -1), one.cut(0, -1), late.cut(0, 1))
    mixed = cached.step(three, late.cut(1), decodes=[none.cut(5), one.cut(3)])
    alone = [dense(MODEL, NONE, pictures(1)), dense(MODEL, ONE, pictures(1))]
    close(mixed[0], alone[0][-1:])
    close(mixed[1], alone[1][-1:])
    close(mixed[2], dense(MODEL, THREE, pictures(4)[1:]))
    close(mixed[3], alone[1][1:])


def test_a_step_writes_its_own_tokens_places_and_no_others() -> None:
    cached = shown(3)
    for cache in (cached.blocks.k, cached.blocks.v):
        cache.fill_(7.0)
    cached.step(document(THREE, row=2), decodes=[Chunk(0, [9], [-1], start=4)])
    place = cached.layout.place
    for cache in (cached.blocks.k, cached.blocks.v):
        touched = (cache != 7).flatten(2).any(-1).any(0)  # [places]
        expected = [place(0, 4), *(place(2, i) for i in range(len(THREE)))]
        assert touched.nonzero().flatten().tolist() == expected


def test_a_shorter_sequence_does_not_see_what_an_older_one_left_behind() -> None:
    cached = shown(1)
    cached.blocks.k[:, 4:] = cached.blocks.v[:, 4:] = 50.0
    long, short = document(NONE, 0), document(ONE, 1)
    cached.step(long.cut(0, -1), short.cut(0, -1))
    answers = cached.step(decodes=[long.cut(5), short.cut(3)])
    close(answers[1], dense(MODEL, ONE, pictures(1))[-1:])


def test_a_sequence_without_pictures_never_reads_a_slot() -> None:
    cached = Cached(MODEL)
    cached.media.k.fill_(torch.nan)
    cached.media.v.fill_(torch.nan)
    whole = document(NONE)
    logits = [*cached.step(whole.cut(0, -1)), *cached.step(decodes=[whole.cut(5)])]
    close(torch.cat(logits), dense(MODEL, NONE, pictures(1)))


def test_a_decoding_token_sees_the_last_picture_only() -> None:
    cached = shown(3)
    whole = document(THREE)
    cached.step(whole.cut(0, -1))
    expected = cached.step(decodes=[whole.cut(6)])
    for cache in (cached.media.k, cached.media.v):
        cache[:, :2] = torch.nan
    assert torch.equal(cached.step(decodes=[whole.cut(6)])[0], expected[0])


def test_a_forked_sequence_goes_on_in_a_copy_of_its_last_block() -> None:
    cached, whole = shown(3), document(THREE)
    cached.step(whole.cut(0, -1))
    for source, target in zip(cached.layout.blocks(0), cached.layout.blocks(3), strict=True):
        cached.blocks.copy_block(source, target)
    there = document(THREE, row=3)
    both = cached.step(decodes=[whole.cut(6), there.cut(6)])
    close(both[0], both[1])
    close(both[0], dense(MODEL, THREE, pictures(3))[-1:])


def test_copying_a_block_leaves_the_others() -> None:
    cache = Cached(MODEL).blocks
    cache.k[:, 4:8], cache.k[:, 8:] = 1.0, 2.0
    cache.copy_block(1, 3)
    assert (cache.k[:, 12:16] == 1).all() and (cache.k[:, 8:12] == 2).all()
    assert (cache.k[:, 16:] == 2).all()


def test_writing_a_slot_leaves_the_others() -> None:
    cached = shown(2)
    kept = cached.media.k[:, 0].clone()
    cached.show([1], pictures(1, seed=9))
    assert torch.equal(cached.media.k[:, 0], kept)
    assert (cached.media.k[:, 2:] == 0).all()


def test_a_bfloat16_model_agrees_on_both_ways_and_its_logits_are_float32() -> None:
    model, pixels = tiny_model().bfloat16(), pictures(3).bfloat16()
    cached, whole = Cached(model), document(THREE)
    cached.show([0, 1, 2], pixels)
    steps = [*cached.step(whole.cut(0, 3)), *cached.step(whole.cut(3, 6))]
    logits = torch.cat([*steps, *cached.step(decodes=[whole.cut(6)])])
    expected = dense(model, THREE, pixels)
    assert cached.blocks.k.dtype == cached.media.k.dtype == torch.bfloat16
    assert logits.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.1)


def test_packed_documents_do_not_see_each_other() -> None:
    q, k, v = torch.randn(3, 1, 5, 2, 8, generator=torch.Generator().manual_seed(0))
    packed = DenseSelfAttention(1, 5, Reach(), torch.tensor([[0, 0, 1, 1, 1]]))(0, q, k, v)
    first = DenseSelfAttention(1, 2, Reach())(0, q[:, :2], k[:, :2], v[:, :2])
    second = DenseSelfAttention(1, 3, Reach())(0, q[:, 2:], k[:, 2:], v[:, 2:])
    close(packed, torch.cat([first, second], dim=1))

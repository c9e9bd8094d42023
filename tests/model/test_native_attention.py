"""The C kernels' attention against one written out in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamingo_model.cuda_attention import Table, padded
from flamingo_model.native.attention import attend, attend_paged
from our_kernels import needs_kernels

pytestmark = needs_kernels
DIMS = (1, 7, 16, 24, 64, 80, 128, 130)
HEADS = ((1, 1), (3, 3), (6, 2), (4, 1))  # of queries, and of keys
few_examples = settings(deadline=None, max_examples=60)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int | None = None,
    slopes: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """As `attend`, in float64 and with all scores at once."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.double().repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("nthd,nshd->nhts", q.double(), k) / q.shape[-1] ** 0.5
    if start is not None:
        distance = start + torch.arange(q.shape[1]).unsqueeze(1) - torch.arange(k.shape[1])
        if slopes is not None:
            scores = scores - slopes.double().view(-1, 1, 1) * distance
        seen = (distance >= 0) & (distance < (window or k.shape[1]))
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("nhts,nshd->nthd", scores.softmax(-1), v)


def assert_exact(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@st.composite
def sizes(draw: Any) -> tuple[int, int, int]:
    heads, kv_heads = draw(st.sampled_from(HEADS))
    return heads, kv_heads, draw(st.sampled_from(DIMS))


@st.composite
def rules(draw: Any, heads: int) -> dict[str, Any]:
    slopes = 2.0 ** -torch.arange(1.0, heads + 1) if draw(st.booleans()) else None
    return {"slopes": slopes, "window": draw(st.none() | st.integers(1, 70))}


# Many queries


@few_examples
@given(sizes(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 200))
def test_queries_that_see_all_keys(
    size: tuple[int, int, int], batch: int, num: int, keys: int
) -> None:
    heads, kv_heads, dim = size
    q, k, v = (
        noise(batch, n, h, dim, seed=i)
        for i, (n, h) in enumerate([(num, heads), (keys, kv_heads), (keys, kv_heads)])
    )
    assert_exact(attend(q, k, v), exact(q, k, v))


@few_examples
@given(st.data(), sizes(), st.integers(1, 40), st.integers(0, 160))
def test_queries_that_see_what_is_before_them(
    data: st.DataObject, size: tuple[int, int, int], num: int, start: int
) -> None:
    heads, kv_heads, dim = size
    rule = data.draw(rules(heads))
    q, k, v = prompt(heads, kv_heads, dim, start + num)
    q = 3 * q[:, start:]  # scores that are far apart
    assert_exact(attend(q, k, v, start, **rule), exact(q, k, v, start, **rule))


def prompt(heads: int, kv_heads: int, dim: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (
        noise(1, length, num, dim, seed=seed)
        for seed, num in enumerate([heads, kv_heads, kv_heads])
    )
    return q, k, v


@few_examples
@given(st.data(), sizes(), st.integers(2, 200))
def test_a_prompt_in_chunks_is_the_whole_bit_for_bit(
    data: st.DataObject, size: tuple[int, int, int], length: int
) -> None:
    q, k, v = prompt(*size, length)
    rule = data.draw(rules(size[0]))
    whole = attend(q, k, v, 0, **rule)
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4)))
    for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
        chunk = attend(q[:, begin:end], k[:, :end], v[:, :end], begin, **rule)
        assert torch.equal(chunk, whole[:, begin:end])


def test_chunks_of_another_part_do_not_change_a_row_of_a_batch() -> None:
    q, k, v = (noise(5, 50, 4, 24, seed=seed) for seed in range(3))
    whole = attend(q, k, v)
    for row in range(5):
        one = slice(row, row + 1)
        assert torch.equal(attend(q[one, 7:20], k[one], v[one]), whole[one, 7:20])


@pytest.mark.parametrize("dim", DIMS)
def test_queries_keys_and_values_are_read_where_they_lie(dim: int) -> None:
    q, k, v = noise(2, 70, 3, 4, dim).unbind(2)
    expected = attend(*(x.contiguous() for x in (q, k, v)))
    assert torch.equal(attend(q, k, v), expected)
    k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))  # as pictures' keys
    assert torch.equal(attend(q, k, v), expected)
    apart = torch.stack([q, q], dim=-1)[..., 0]  # its numbers are no neighbours
    assert torch.equal(attend(apart, k, v), expected)
    cache = noise(3, 99, 4, dim)
    own, copied = cache[1, 11:61].unsqueeze(0), cache[1, 11:61].clone().unsqueeze(0)
    assert torch.equal(attend(q[:1], own, own, 5), attend(q[:1], copied, copied, 5))


def test_without_queries_or_pictures_there_is_nothing() -> None:
    keys = noise(2, 9, 2, 8)
    assert attend(keys[:, :0], keys, keys).shape == (2, 0, 2, 8)
    assert attend(keys[:0], keys[:0], keys[:0]).shape == (0, 9, 2, 8)
    assert (attend(keys, keys[:, :0], keys[:, :0]) == 0).all()  # nor without keys


def test_keys_behind_the_last_query_are_not_read() -> None:
    q, k, v = prompt(2, 2, 16, 40)
    expected = attend(q[:, :13], k[:, :13], v[:, :13], 0)
    k[:, 13:], v[:, 13:] = torch.nan, torch.nan
    assert torch.equal(attend(q[:, :13], k, v, 0), expected)


def test_nan_stays_in_its_query_and_in_its_head() -> None:
    q, k, v = (noise(2, 20, 3, 16, seed=seed) for seed in range(3))
    expected = attend(q, k, v)
    q[0, 7, 1], k[1, 4, 2, 3] = torch.nan, torch.nan
    found, strange = attend(q, k, v), torch.zeros(2, 20, 3, dtype=torch.bool)
    strange[0, 7, 1], strange[1, :, 2] = True, True
    assert found[strange].isnan().all()
    assert torch.equal(found[~strange], expected[~strange])


def test_a_score_beyond_all_numbers_below_counts_nothing() -> None:
    q, k, v = prompt(1, 1, 16, 30)
    q[0, 20], k[0, 3] = 1e20, -1e20
    q[0, 20, 0, 1:], k[0, 3, 0, 1:] = 0.0, 0.0
    k[0, :3], k[0, 4:] = 0.0, 0.0
    with_low = attend(q, k, v)[0, 20, 0]
    torch.testing.assert_close(with_low, torch.cat([v[0, :3, 0], v[0, 4:, 0]]).mean(0))


# One query each


def blocks_of(lengths: list[int], size: int, seed: int) -> list[list[int]]:
    """Blocks all over a cache of 400."""
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed)).tolist()
    return [[order.pop() for _ in range(max(1, -(-length // size)))] for length in lengths]


def filled(blocks: list[list[int]], size: int, keys: Tensor) -> Tensor:
    """Keys [rows, length, kv_heads, D] in their blocks; behind them NaN."""
    cache = torch.full((401, size, *keys.shape[2:]), torch.nan)
    for row, theirs in zip(keys, blocks, strict=True):
        for at, block in enumerate(theirs):
            part = row[at * size : (at + 1) * size]
            cache[block, : len(part)] = part
    return cache


def cut_to(cache: Tensor, table: Table) -> Tensor:
    """What lies beyond the lengths becomes NaN."""
    size = cache.shape[1]
    for blocks, length in zip(table.blocks.tolist(), table.lengths.tolist(), strict=True):
        used = -(-length // size)
        if length % size:
            cache[blocks[used - 1], length % size :] = torch.nan
    return cache


@few_examples
@given(
    st.data(),
    sizes(),
    st.lists(st.integers(0, 200), min_size=1, max_size=5),
    st.sampled_from([1, 4, 5, 16, 64]),
)
def test_a_token_sees_the_first_keys_of_its_blocks(
    data: st.DataObject, shape: tuple[int, int, int], lengths: list[int], size: int
) -> None:
    heads, kv_heads, dim = shape
    lengths = [min(length, 80 * size) for length in lengths]
    rule = data.draw(rules(heads))
    q, keys = noise(len(lengths), heads, dim), max(1, *lengths)
    k, v = (noise(len(lengths), keys, kv_heads, dim, seed=seed) for seed in (1, 2))
    blocks = blocks_of(lengths, size, len(lengths))
    table = Table(padded(blocks, q.device), torch.tensor(lengths), **rule)
    in_blocks = [cut_to(filled(blocks, size, x), table) for x in (k, v)]
    found = attend_paged(3 * q, *in_blocks, table)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        if not length:
            assert (found[row] == 0).all()
            continue
        parts = 3 * q[one].unsqueeze(1), k[one, :length], v[one, :length]
        assert_exact(found[one], exact(*parts, length - 1, **rule)[:, 0])


@few_examples
@given(st.data(), sizes(), st.integers(0, 100), st.integers(1, 20), st.sampled_from([1, 4, 5, 16]))
def test_a_prompt_sees_keys_in_blocks_as_those_in_a_row(
    data: st.DataObject, shape: tuple[int, int, int], start: int, num: int, size: int
) -> None:
    heads, kv_heads, dim = shape
    rule, length = data.draw(rules(heads)), start + num
    q = 3 * noise(1, num, heads, dim)
    k, v = (noise(1, length, kv_heads, dim, seed=seed) for seed in (1, 2))
    [blocks] = blocks_of([length], size, length)
    table = Table(torch.tensor([blocks]), torch.tensor([length]))
    in_blocks = [cut_to(filled([blocks], size, x), table) for x in (k, v)]
    found = attend(q, *in_blocks, start, **rule, blocks=torch.tensor(blocks))
    assert torch.equal(found, attend(q, k, v, start, **rule))


@pytest.mark.parametrize("dim", DIMS)
def test_a_token_is_the_same_in_any_blocks_and_any_company(dim: int) -> None:
    lengths, slopes = [1, 63, 64, 65, 150, 200, 0, 16], torch.tensor([0.5, 0.25, 0.1, 0.01])
    q, k, v = noise(8, 4, dim), noise(8, 200, 2, dim, seed=1), noise(8, 200, 2, dim, seed=2)
    found = []
    for size in (4, 7, 64):
        blocks = blocks_of(lengths, size, size)
        table = Table(padded(blocks, q.device), torch.tensor(lengths), slopes, 90)
        caches = [filled(blocks, size, x) for x in (k, v)]
        found.append(attend_paged(q, *caches, table))
        for row in range(8):
            own = Table(table.blocks[row : row + 1], table.lengths[row : row + 1], slopes, 90)
            found.append(found[-1].clone())
            found[-1][row] = attend_paged(q[row : row + 1], *caches, own)[0]
    assert all(torch.equal(each, found[0]) for each in found)


def test_rows_of_queries_may_lie_apart() -> None:
    q, cache = noise(5, 3, 4, 24)[:, 1], noise(9, 8, 2, 24, seed=1)
    table = Table(torch.arange(5).unsqueeze(1), torch.tensor([1, 2, 3, 4, 8]))
    assert torch.equal(
        attend_paged(q, cache, cache, table), attend_paged(q.contiguous(), cache, cache, table)
    )


def test_every_number_of_threads_gives_the_same_bits() -> None:
    q, k, v = prompt(4, 2, 64, 150)
    table = Table(torch.arange(32).view(4, 8), torch.tensor([128, 100, 64, 128]))
    cache, found = noise(32, 16, 2, 64), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        tokens = attend_paged(q[0, :4], cache, cache, table)
        found.append(torch.cat([attend(q, k, v, 0)[0], tokens]))
    torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)

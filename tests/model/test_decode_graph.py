"""Decoding at fixed shapes against the eager way. On a CPU a graph is the code that it captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_model.config import FlamingoConfig
from flamingo_model.cuda_attention import fastest_attend, flash_attend, gathered_attend
from flamingo_model.decode_graph import (
    DecodeGraphs,
    captured,
    graph_sizes,
    is_capturable,
)
from forward import Cached, Chunk, half_decoded, row_of
from tiny import tiny_config, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_heads": 4, "num_kv_heads": 2},
    "alibi": {"positions": "alibi", "num_heads": 3},
    "window": {"sliding_window": 3},
    "learned": {"positions": "learned_offset_2"},
}


def make_config(kind: str = "plain", sees_all: bool = False) -> FlamingoConfig:
    config = tiny_config()
    return replace(
        config,
        decoder=replace(config.decoder, **KINDS[kind]),
        cross_attention=replace(config.cross_attention, sees_all_media=sees_all),
    )


def prepared(config: FlamingoConfig | None = None) -> tuple[Cached, list[Chunk]]:
    return half_decoded(tiny_model(config=config or tiny_config()))


def make_graphs(cached: Cached, max_rows: int = 4) -> DecodeGraphs:
    sizes = max_rows, cached.layout.row_blocks
    return DecodeGraphs(cached.model, cached.blocks, cached.media, *sizes)


def both(cached: Cached, chunks: Sequence[Chunk], graphs: DecodeGraphs) -> tuple[Tensor, Tensor]:
    """By a graph, and eagerly."""
    found = graphs.run([row_of(chunk, cached) for chunk in chunks]).clone()
    return found, torch.cat(cached.step(decodes=chunks))


@pytest.mark.parametrize("sees_all", [False, True], ids=["last", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_answers_as_the_eager_way_does(kind: str, sees_all: bool) -> None:
    cached, chunks = prepared(make_config(kind, sees_all))
    found, expected = both(cached, chunks, make_graphs(cached))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
def test_a_graph_reads_its_tables_with_kernels_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter; what is marked for a GPU runs them there."""
    if torch.cuda.is_available():
        pytest.skip("kernels are compiled here, and the caches of this test lie on the CPU")
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernels are first imported
    pytest.importorskip("triton")
    cached, chunks = prepared(make_config("alibi", sees_all=True))
    graphs = make_graphs(cached, max_rows=8)
    graphs.attend = flash_attend
    found, expected = both(cached, chunks[:3], graphs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_rows_fill_the_next_larger_graph_and_padding_changes_nothing(num: int) -> None:
    cached, chunks = prepared()
    graphs = make_graphs(cached, max_rows=16)
    for some in (chunks[:num], chunks[-num:]):
        found, expected = both(cached, some, graphs)
        assert found.shape == (num, cached.model.config.decoder.vocab_size)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num", "size"), [(1, 1), (2, 2), (3, 4), (4, 4)])
def test_the_smallest_graph_that_fits_runs(num: int, size: int) -> None:
    cached, chunks = prepared()
    graphs = make_graphs(cached)
    graphs.graphs = {n: partial(torch.full, (n, 1), n) for n in graphs.graphs}
    ran = graphs.run([row_of(chunk, cached) for chunk in chunks[:num]])
    assert ran.tolist() == [[size]] * num


def test_a_narrow_run_after_a_wide_one_sees_nothing_of_it() -> None:
    cached, chunks = prepared()
    graphs = make_graphs(cached)
    address = graphs.inputs.data_ptr()
    alone = both(cached, chunks[2:3], graphs)[0]
    graphs.run([row_of(chunk, cached) for chunk in chunks])
    assert torch.equal(both(cached, chunks[2:3], graphs)[0], alone)
    assert graphs.inputs.data_ptr() == address


def test_a_run_writes_its_own_places_and_scratch_only() -> None:
    cached, chunks = prepared()
    graphs, *rows = make_graphs(cached, 8), *(row_of(chunk, cached) for chunk in chunks)
    graphs.run(rows)  # nothing of its last row is left for the next
    caches, rows = (cached.blocks.k, cached.blocks.v), rows[:3]
    for cache in caches:
        cache[:, cached.layout.block_size :] = 7.0
    before = [cache.clone() for cache in caches]
    graphs.run(rows)
    for old, new in zip(before, caches, strict=True):
        touched = (old != new).flatten(2).any(-1).any(0).nonzero().flatten().tolist()
        assert touched == sorted([*(row.place for row in rows), cached.blocks.scratch])
        assert (new[:, : cached.layout.block_size] == 0).all()


def test_nobody_owns_the_scratch_block() -> None:
    blocks = prepared()[0].blocks
    size, last = blocks.block_size, blocks.num_blocks
    assert (last + 1) * size == blocks.scratch == blocks.k.shape[1] - size


def test_a_row_sees_neither_blocks_nor_slots_of_others() -> None:
    cached, chunks = prepared()
    graphs, rows = make_graphs(cached), [row_of(chunk, cached) for chunk in chunks]
    expected = graphs.run(rows[1:2]).clone()
    own = [place for block in rows[1].blocks for place in range(block * 4, block * 4 + 4)]
    others = [i for i in range(4, cached.blocks.k.shape[1]) if i not in own]
    for blocks, slots in ((cached.blocks.k, cached.media.k), (cached.blocks.v, cached.media.v)):
        blocks[:, others] = torch.nan
        slots[:, [i for i in range(8) if i not in rows[1].slots]] = torch.nan
    assert torch.equal(graphs.run(rows[1:2]), expected)


def test_a_row_without_media_reads_no_slot() -> None:
    cached, chunks = prepared()
    expected = torch.cat(cached.step(decodes=chunks[:1]))
    cached.media.k.fill_(torch.nan)
    cached.media.v.fill_(torch.nan)
    found = make_graphs(cached).run([row_of(chunks[0], cached)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_known_before() -> None:
    cached, chunks = prepared()
    graphs, row = make_graphs(cached), row_of(chunks[2], cached)
    assert graphs.can_run([row] * 4) and not graphs.can_run([row] * 5)
    assert not graphs.can_run([replace(row, blocks=[*row.blocks, 1])])
    assert not graphs.can_run([replace(row, slots=[0, 1])])


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (32, [1, 2, 4, 8, 16, 24, 32])]
    + [(20, [1, 2, 4, 8, 16, 20])],
)
def test_sizes_end_with_the_most_rows_there_can_be(max_rows: int, sizes: list[int]) -> None:
    assert graph_sizes(max_rows) == sizes


def test_a_cpu_captures_nothing_and_gathers() -> None:
    device = torch.device("cpu")
    assert captured(make_config, device) is make_config
    assert fastest_attend(device) is gathered_attend


def test_layers_that_ask_the_cpu_at_every_call_are_not_captured() -> None:
    class Linear8bitLt(torch.nn.Linear): ...

    model = tiny_model()
    assert is_capturable(model)
    model.decoder.layers[0].up = Linear8bitLt(2, 2)
    assert not is_capturable(model)

"""Decoding as one call of the C kernels against the same kernels called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flamingo_model.config import FlamingoConfig
from flamingo_model.flamingo import Flamingo
from flamingo_model.linears import EightBit, PackedLinear
from flamingo_model.native_attention import NativeCrossAttention, NativeSelfAttention
from flamingo_model.native_decode import NativeDecoding, is_recordable, step_linears
from flamingo_model.packing import pack_model
from forward import Cached, Chunk, flat_batch, half_decoded, row_of
from our_kernels import needs_kernels
from tiny import tiny_config, tiny_model

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the caches lie on the GPU"),
]
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "grouped": {"num_heads": 4, "head_dim": 8, "num_kv_heads": 2, "sliding_window": 3},
    "opt": {
        **{"norm": "layer", "positions": "learned_offset_2", "activation": "relu"},
        **{"gated": False, "feed_forward_bias": True, "out_bias": True, "tie_embeddings": True},
    },
    "mpt": {
        **{"norm": "layer", "norm_bias": False, "positions": "alibi", "activation": "gelu"},
        **{"gated": False, "attention_bias": False, "num_heads": 3},
    },
    "redpajama": {
        **{"norm": "layer", "rotary_dim": 6, "activation": "gelu", "gated": False},
        **{"out_bias": True, "feed_forward_bias": True},
    },
    "neighbours": {"positions": "rotary_interleaved", "rotary_dim": 10, "norm": "layer"},
    "gpt2": {"norm": "layer", "positions": "learned", "activation": "gelu_tanh", "gated": False},
}
BLOCKS: dict[str, dict[str, Any]] = {
    "all": {"sees_all_media": True},
    "no feed-forward": {"has_feed_forward": False},
    "gelu": {"activation": "gelu"},
    "every second": {"interval": 2},
    "idefics": {"kind": "idefics", "ff_dim": 80},
    "vector gates": {"kind": "idefics", "has_vector_gates": True},
}
BUILT_OTHERWISE: dict[str, dict[str, Any]] = {
    "post_norm": {"block": "post_norm"},
    "parallel": {"block": "parallel"},
    "parallel_shared": {"block": "parallel_shared"},
    "query_key_norm": {"query_key_norm": True},
}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def config_of(decoder: dict[str, Any] | None = None, **block: Any) -> FlamingoConfig:
    config = tiny_config()
    return replace(
        config,
        decoder=replace(config.decoder, **{"ff_dim": 96, **(decoder or {})}),
        cross_attention=replace(config.cross_attention, **block),
    )


def packed(config: FlamingoConfig, kind: str = "float32") -> Flamingo:
    model = tiny_model(config=config)
    pack_model(model, kind)
    return model


def make_decoding(cached: Cached, max_rows: int = 4) -> NativeDecoding:
    assert is_recordable(cached.model, cached.blocks, cached.media)
    sizes = max_rows, cached.layout.row_blocks
    return NativeDecoding(cached.model, cached.blocks, cached.media, *sizes)


def run(decoding: NativeDecoding, cached: Cached, chunks: Sequence[Chunk]) -> Tensor:
    rows = [row_of(chunk, cached) for chunk in chunks]
    assert decoding.can_run(rows)
    return decoding.run(rows).clone()


def one_by_one(cached: Cached, decodes: Sequence[Chunk], *prefills: Chunk) -> Tensor:
    """Logits of the decoding tokens by the same kernels, called from Python."""
    batch = flat_batch(decodes, prefills, cached.layout)
    hidden = cached.model(
        batch.token_ids,
        batch.positions,
        NativeSelfAttention(cached.blocks, batch),
        NativeCrossAttention(cached.media, batch),
    )
    return cached.model.logits(hidden[: len(decodes)])


def assert_the_same_bits(model: Flamingo, num_rows: Sequence[int] = (1, 2, 4)) -> None:
    """Logits, and what is written to the cache."""
    cached, chunks = half_decoded(model)
    decoding = make_decoding(cached)
    for num in num_rows:
        found = run(decoding, cached, chunks[:num])
        written = cached.blocks.k.clone(), cached.blocks.v.clone()
        places = [cached.layout.place(chunk.row, chunk.start) for chunk in chunks[:num]]
        for cache in (cached.blocks.k, cached.blocks.v):
            cache[:, places] = torch.nan  # so that they are written anew
        assert torch.equal(found, one_by_one(cached, chunks[:num])) and found.isfinite().all()
        assert torch.equal(cached.blocks.k, written[0])
        assert torch.equal(cached.blocks.v, written[1])


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_one_call_gives_the_bits_of_many(decoder: str, kind: str) -> None:
    assert_the_same_bits(packed(config_of(DECODERS[decoder]), kind))


@pytest.mark.parametrize("block", BLOCKS)
def test_every_kind_of_cross_attention_is_recorded(block: str) -> None:
    assert_the_same_bits(packed(config_of(**BLOCKS[block])))


def test_a_token_beside_a_prompt_has_the_bits_it_has_in_a_recorded_step() -> None:
    cached, chunks = half_decoded(packed(config_of()))
    decoding = make_decoding(cached)
    alone = run(decoding, cached, chunks[:1])
    assert torch.equal(alone, run(decoding, cached, chunks)[:1])
    assert torch.equal(alone, one_by_one(cached, chunks[:1], replace(chunks[3], ids=[9, 9, 9])))


def test_the_answer_is_that_of_the_portable_way() -> None:
    cached, chunks = half_decoded(packed(config_of()))
    found = run(make_decoding(cached), cached, chunks)
    torch.testing.assert_close(found, torch.cat(cached.step(decodes=chunks)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_number_of_threads_gives_the_same_bits(kind: str, threads: int) -> None:
    """Of a model wide enough for several: small products have one thread alone."""
    wide = {"dim": 256, "ff_dim": 1024, "num_heads": 8, "head_dim": 32, "num_kv_heads": 4}
    model = packed(config_of({**wide, "sliding_window": 3}), kind)
    cached, chunks = half_decoded(model)
    decoding, before = make_decoding(cached), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for num in (1, 2, 4):
            found = run(decoding, cached, chunks[:num])
            assert torch.equal(found, one_by_one(cached, chunks[:num]))
    finally:
        torch.set_num_threads(before)


def test_each_number_of_rows_takes_the_kernel_made_for_it() -> None:
    """Few rows that of 4 bits, more that of 8: their bits differ."""
    model = packed(config_of(), "int4")
    for linear in step_linears(model):
        linear.many_from = 3 if linear.has_two else 0.0
    assert any(linear.has_two for linear in step_linears(model))
    assert_the_same_bits(model, num_rows=(2, 3))


def test_where_torch_is_faster_for_many_rows_only_few_are_recorded() -> None:
    model = packed(config_of(), "int8")
    first: PackedLinear = model.decoder.layers[1].down
    first.many, first.has_two, first.many_from = EightBit(torch.ones(32, 96), None), True, 3
    cached, chunks = half_decoded(model)
    decoding, rows = make_decoding(cached), [row_of(chunk, cached) for chunk in chunks]
    assert decoding.can_run(rows[:2]) and not decoding.can_run(rows[:3])


def test_a_narrow_step_after_a_wide_one_sees_nothing_of_it() -> None:
    cached, chunks = half_decoded(packed(config_of()))
    decoding = make_decoding(cached)
    alone = run(decoding, cached, chunks[3:])  # the shortest, and it sees no picture
    run(decoding, cached, chunks)
    assert torch.equal(run(decoding, cached, chunks[3:]), alone)
    assert torch.equal(run(make_decoding(cached, 1), cached, chunks[3:]), alone)


def test_only_the_places_of_new_tokens_are_written() -> None:
    cached, chunks = half_decoded(packed(config_of(DECODERS["grouped"])))
    before = cached.blocks.k.clone(), cached.blocks.v.clone()
    run(make_decoding(cached), cached, chunks[:2])
    places = {cached.layout.place(chunk.row, chunk.start) for chunk in chunks[:2]}
    others = [i for i in range(before[0].shape[1]) if i not in places]
    for cache, old in zip((cached.blocks.k, cached.blocks.v), before, strict=True):
        assert torch.equal(cache[:, others], old[:, others])
        assert not (cache[:, [*places]] == old[:, [*places]]).all(-1).any()


def test_nan_stays_in_its_row() -> None:
    cached, chunks = half_decoded(packed(config_of()))
    decoding = make_decoding(cached)
    expected = run(decoding, cached, chunks)
    cached.model.decoder.embed.weight[chunks[1].ids[0]] = torch.nan
    found = run(decoding, cached, chunks)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])


def test_what_is_wider_than_its_tables_is_not_run() -> None:
    cached, chunks = half_decoded(packed(config_of()))
    decoding, row = make_decoding(cached), row_of(chunks[1], cached)
    assert decoding.can_run([row] * 4) and not decoding.can_run([row] * 5)
    assert not decoding.can_run([replace(row, blocks=[1] * 4)])
    assert not decoding.can_run([replace(row, slots=[0, 1])])


# What is not recorded


def can_record(model: Flamingo) -> bool:
    cached = Cached(model)
    return is_recordable(model, cached.blocks, cached.media)


@pytest.mark.parametrize("decoder", BUILT_OTHERWISE)
def test_a_decoder_built_otherwise_is_not_recorded(decoder: str) -> None:
    assert not can_record(packed(config_of(BUILT_OTHERWISE[decoder])))


def test_normed_queries_of_pictures_are_not_recorded() -> None:
    assert not can_record(packed(config_of(kind="idefics", query_key_norm=True)))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.decoder.layers[1].register_module("widen", nn.Identity()),
        lambda model: model.cross_attention.__setitem__(1, nn.Identity()),
        lambda model: setattr(model.decoder.layers[0], "activation", torch.sin),
        lambda model: setattr(model.decoder.layers[2].out, "few", EightBit(torch.ones(1, 4), None)),
        lambda model: model.bfloat16(),
    ],
    ids=["layer", "block", "activation", "kernel", "type"],
)
def test_what_is_not_the_kernels_is_not_recorded(change: Callable[[Flamingo], None]) -> None:
    model = packed(config_of())
    assert can_record(model)
    change(model)
    assert not can_record(model)


def test_a_plain_model_is_not_recorded() -> None:
    assert not can_record(tiny_model())

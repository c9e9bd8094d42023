"""Every language model of the family against transformers' own, by every way through ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flamingo_model.checkpoints.language_models import (
    FAMILIES,
    decoder_config,
)
from flamingo_model.decoder import Decoder
from flamingo_model.paged_attention import CachedSelfAttention
from flamingo_model.positions import reach
from forward import flat_batch
from language import (
    IDS,
    MOSAIC,
    THEIRS,
    WAYS,
    Rows,
    chunk,
    converted,
    dense,
    deviation,
    mosaic_logits,
    mosaic_weights,
    our_model,
    their_model,
)


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


@torch.no_grad()
@pytest.mark.parametrize("name", ["mpt-6-heads", "mistral", "opt-350m"])
def test_bfloat16_agrees_on_every_way_and_its_logits_are_float32(name: str) -> None:
    decoder = converted(their_model(name)).bfloat16()
    rows = Rows(decoder)
    rows.cache.k, rows.cache.v = rows.cache.k.bfloat16(), rows.cache.v.bfloat16()
    [first] = rows.step(chunk(0, 0, 5))
    [second] = rows.step(decodes=(chunk(0, 5, 6),))
    cached, whole = torch.cat([first, second]), dense(decoder, IDS[:1, :6])[0]
    assert rows.cache.k.dtype == torch.bfloat16 and cached.dtype == whole.dtype == torch.float32
    assert deviation(cached, whole) < 0.05


@pytest.mark.parametrize("name", ["llama", "mistral", "mpt"])
def test_masks_have_the_four_dimensions_of_the_fast_kernel(name: str) -> None:
    """Three give the same numbers, several times slower on a CPU."""
    rows = Rows(converted(their_model(name)))
    batch = flat_batch([], [chunk(1, 4, 9)], rows.layout)
    [mask] = CachedSelfAttention(rows.cache, batch).masks
    assert mask is not None and mask.dim() == 4


@torch.no_grad()
def test_mpt_1b_is_as_written() -> None:
    weights = mosaic_weights()
    expected = torch.stack([mosaic_logits(MOSAIC, weights, row) for row in IDS.tolist()])
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


def test_every_family_is_read_and_compared_here() -> None:
    compared = {make().model_type for make in THEIRS.values()} | {MOSAIC["model_type"]}
    assert compared == set(FAMILIES)

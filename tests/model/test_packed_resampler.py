"""Packed resamplers against the plain ones, for films, pictures and every variant."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flamingo_model.packed_resampler import FILMS_AT_ONCE, PackedPerceiver, packed_resampler
from flamingo_model.packing import pack_linears
from flamingo_model.resampler import PerceiverResampler, build_resampler
from our_kernels import needs_kernels
from tiny import tiny_config

CONFIG = tiny_config().resampler
VARIANTS = {
    "the paper's": CONFIG,
    "with normed queries": replace(CONFIG, query_key_norm=True),
    "with a projection": replace(CONFIG, has_projection=True),
    "gelu": replace(CONFIG, activation="gelu"),
    "without times": replace(CONFIG, num_time_embeddings=0),
    "transformer": replace(CONFIG, kind="transformer"),
    "mlp": replace(CONFIG, kind="mlp"),
}
ALLOWED = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.05}

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def drawn(name: str) -> PerceiverResampler:
    """Norms, too, have numbers of their own."""
    torch.manual_seed(0)
    resampler = build_resampler(VARIANTS[name], tiny_config().vision).eval()
    for norm in (module for module in resampler.modules() if isinstance(module, nn.LayerNorm)):
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    return resampler


def packed(resampler: nn.Module, kind: str) -> nn.Module:
    found = packed_resampler(copy.deepcopy(resampler), kind)
    pack_linears(found, kind)
    return found


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("shape", [(1, 1), (FILMS_AT_ONCE + 1, 1), (2, 3)])
def test_packed_it_answers_the_same(name: str, kind: str, shape: tuple[int, int]) -> None:
    plain = drawn(name)
    features = torch.randn(*shape, 9, 24)
    given = features.clone()
    assert error(packed(plain, kind)(given), plain(features)) < ALLOWED[kind]
    assert torch.equal(given, features)


def test_only_the_papers_kind_with_plain_layers_is_rebuilt() -> None:
    quantised = drawn("the paper's")
    quantised.layers[0].to_q.__class__ = type("Quantised", (nn.Linear,), {})
    built = [packed_resampler(drawn(name), "float32") for name in VARIANTS]
    built.append(packed_resampler(quantised, "float32"))
    is_rebuilt = [isinstance(found.resampler, PackedPerceiver) for found in built]
    assert is_rebuilt == [True] * 5 + [False] * 3


def test_packing_twice_changes_nothing() -> None:
    once = packed_resampler(drawn("the paper's"), "float32")
    assert packed_resampler(once, "float32") is once


@needs_kernels
@pytest.mark.parametrize("kernels", ["ours"], indirect=True)
@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("name", ["the paper's", "with normed queries", "with a projection"])
def test_a_films_latents_are_the_same_alone_and_beside_others(name: str, kind: str) -> None:
    resampler, features = packed(drawn(name), kind), torch.randn(FILMS_AT_ONCE + 3, 2, 9, 24)
    alone = [resampler(one) for one in features.split(1)]
    assert torch.equal(torch.cat(alone), resampler(features))

"""Packed towers against the plain ones, with our kernels and without."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flamingo_model.clip import ClipTower
from flamingo_model.config import VisionConfig
from flamingo_model.idefics_vision import IdeficsTower
from flamingo_model.packed_vision import PackedTower, packed_tower
from our_kernels import needs_kernels


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def vit(kind: str, **options: object) -> VisionConfig:
    return VisionConfig(
        **{"image_size": 32, "dim": 64, "kind": kind, "patch_size": 8, "num_layers": 2}
        | {"num_heads": 2, "ff_dim": 96}
        | options
    )


TOWERS = {
    "clip": lambda: ClipTower(vit("clip")),
    "clip with a class token": lambda: ClipTower(vit("clip", keep_class_token=True)),
    "clip with gelu": lambda: ClipTower(vit("clip", activation="gelu")),
    "idefics": lambda: IdeficsTower(vit("idefics", activation="gelu", keep_class_token=True)),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("num_pictures", [1, 5])
def test_a_packed_tower_sees_the_same(name: str, num_pictures: int) -> None:
    plain = TOWERS[name]().eval()
    expected = plain(pixels := torch.randn(num_pictures, 3, 32, 32))
    for kind in ("float32", "bfloat16", "int8"):
        tower = packed_tower(copy.deepcopy(plain), kind)
        assert isinstance(tower, PackedTower)
        assert error(tower(pixels), expected) < {"float32": 1e-5}.get(kind, 0.03)


@needs_kernels
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_picture_is_seen_the_same_alone_and_beside_others(name: str, kind: str) -> None:
    tower = packed_tower(TOWERS[name]().eval(), kind)
    pixels = torch.randn(7, 3, 32, 32)
    alone = [tower(one) for one in pixels.split(1)]
    assert torch.equal(torch.cat(alone), tower(pixels))

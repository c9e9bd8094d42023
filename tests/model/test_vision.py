"""The tower's shapes are what its config says before any weight is there."""

import pytest
import torch
import torch.nn.functional as F

from flamingo_model.vision import ResidualBlock, build_vision
from flamingo_model.vision_config import VisionConfig


@pytest.mark.parametrize("image_size", [1, 15, 16, 17, 33])
@pytest.mark.parametrize(
    ("widths", "blocks"), [((8,), (1,)), ((8, 16), (0, 1)), ((4, 8, 16), (0, 2, 1))]
)
def test_the_tower_gives_as_many_tokens_as_its_config_says(
    image_size: int, widths: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    config = VisionConfig(image_size, dim=24, widths=widths, blocks=blocks)
    tokens = build_vision(config).eval()(torch.randn(2, 3, image_size, image_size))
    assert tokens.shape == (2, config.num_tokens, 24)


def test_a_stage_halves_then_adds_pre_activated_residuals() -> None:
    config = VisionConfig(16, dim=24, widths=(8, 16), blocks=(0, 1))
    tower, pixels = build_vision(config).eval(), torch.randn(1, 3, 16, 16)
    first, _, second, block, _ = tower.stages
    x = F.silu(F.conv2d(pixels, first.weight, first.bias, stride=2, padding=1))
    x = F.conv2d(x, second.weight, second.bias, stride=2, padding=1)
    x = F.silu(x + block.conv2(F.silu(block.conv1(F.silu(F.group_norm(x, 8))))))
    expected = F.layer_norm(tower.project(x.flatten(2).mT), (24,))
    torch.testing.assert_close(tower(pixels), expected)


def test_stages_have_the_blocks_of_their_config() -> None:
    tower = build_vision(VisionConfig(16, dim=24, widths=(8, 16), blocks=(3, 1)))
    blocks = [m.conv1.in_channels for m in tower.modules() if isinstance(m, ResidualBlock)]
    assert blocks == [8, 8, 8, 16]


def test_tokens_are_the_grid_row_by_row() -> None:
    """A change in the lower right corner reaches the last token and not the first."""
    tower = build_vision(VisionConfig(32, dim=24, widths=(8, 8), blocks=(0, 0))).eval()
    pixels = torch.zeros(1, 3, 32, 32)
    before = tower(pixels)
    pixels[..., -4:, -4:] = 1
    changed = (tower(pixels) != before).any(-1)[0].unflatten(0, (8, 8))
    assert changed[-1, -1] and not changed[:6].any() and not changed[:, :6].any()


def test_frames_do_not_meet() -> None:
    tower = build_vision(VisionConfig(16, dim=24, widths=(8, 16), blocks=(0, 1))).eval()
    pixels = torch.randn(3, 3, 16, 16)
    alone = torch.cat([tower(one) for one in pixels.split(1)])
    torch.testing.assert_close(tower(pixels), alone, rtol=0, atol=1e-5)

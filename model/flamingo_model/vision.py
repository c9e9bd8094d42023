"""Picture towers: normalised pixels → a grid of features, flattened to tokens.

The embedded checkpoint's tower is a small residual convolution net, pre-activation as in the
paper's NFNet. It knows nothing of text.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .clip import ClipTower
from .idefics_vision import IdeficsTower
from .nfnet import NFNet
from .vision_config import VisionConfig


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(norm(x)))))"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm(x)))
        out: Tensor = x + self.conv2(F.silu(hidden))
        return out


class ConvTower(nn.Module):
    """[N, 3, size, size] → [N, S, dim]; each stage halves the grid, then runs residual blocks."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        previous = 3
        for width, blocks in zip(config.widths, config.blocks, strict=True):
            stages.append(nn.Conv2d(previous, width, 3, stride=2, padding=1))
            stages.extend(ResidualBlock(width) for _ in range(blocks))
            stages.append(nn.SiLU())
            previous = width
        self.stages = nn.Sequential(*stages)
        self.project = nn.Linear(previous, config.dim)
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.stages(pixels)  # [N, width, h, w]
        tokens: Tensor = self.norm(self.project(grid.flatten(2).transpose(1, 2)))  # [N, S, dim]
        return tokens


def build_vision(config: VisionConfig) -> nn.Module:
    """The tower that `config.kind` names."""
    towers: dict[str, type[nn.Module]] = {
        "conv": ConvTower,
        "nfnet": NFNet,
        "clip": ClipTower,
        "idefics": IdeficsTower,
    }
    return towers[config.kind](config)

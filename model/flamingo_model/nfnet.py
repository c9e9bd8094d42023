"""NFNet, the paper's picture tower: a residual net that keeps its signal in scale without norms.

Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization"
(F0 … F6); the convolutions are from Brock et al. 2021, "Characterizing signal propagation".
Parameters carry the names of timm's `dm_nfnet_f*`, so that those weights load as they are, less
`head.fc`. Nothing is pooled: the last grid becomes tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vision_config import VisionConfig

ALPHA = 0.2
"""What a block's residual branch, of variance one, is scaled by."""
GELU_GAIN = 1.7015043497085571
"""Brings gelu(x) back to variance one for standard normal x."""
EPS = 1e-5


def scaled_gelu(x: Tensor) -> Tensor:
    return F.gelu(x) * GELU_GAIN


def pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's "SAME": ceil(size / stride) outputs, the odd zero right and below."""
    totals = [
        max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (x.shape[-1], x.shape[-2])
    ]
    return F.pad(x, [side for total in totals for side in (total // 2, total - total // 2)])


class ScaledConv(nn.Conv2d):
    """Convolution whose filters are standardised: mean 0, variance gain² / fan-in."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def standardised(self) -> Tensor:
        weight = self.weight.float()  # half precision would lose the variance
        var, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        scale = self.gain.float() * ((var + EPS) * weight[0].numel()).rsqrt()
        return ((weight - mean) * scale).to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, self.standardised(), self.bias, self.stride, groups=self.groups)


class Act(nn.Module):
    """The stem's activation; it holds a place in timm's numbering of the stem."""

    def forward(self, x: Tensor) -> Tensor:
        return scaled_gelu(x)


class SqueezeExcite(nn.Module):
    """Every channel times a number in (0, 2) that the whole picture decides; 1 on average."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // 2, 1)
        self.fc2 = nn.Conv2d(width // 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)  # [N, width, 1, 1]
        out: Tensor = 2 * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled)))) * x
        return out


class Shortcut(nn.Module):
    """The skip path of a transition: average pooling where the grid shrinks, then a projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = ScaledConv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, self.stride, ceil_mode=True, count_include_pad=False)
        out: Tensor = self.conv(x)
        return out


class Block(nn.Module):
    """x + alpha · gain · f(beta · act(x)); `beta` takes x, of a known variance, back to one."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        beta: float,
        group_width: int,
        is_transition: bool,
    ) -> None:
        super().__init__()
        middle = width // 2
        groups = max(1, middle // group_width)
        self.beta = beta
        self.downsample = Shortcut(inputs, width, stride) if is_transition else None
        self.conv1 = ScaledConv(inputs, middle, 1)
        self.conv2 = ScaledConv(middle, middle, 3, stride, groups)
        self.conv2b = ScaledConv(middle, middle, 3, 1, groups)
        self.conv3 = ScaledConv(middle, width, 1)
        self.attn_last = SqueezeExcite(width)
        self.skipinit_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        hidden = scaled_gelu(x) * self.beta
        shortcut = x if self.downsample is None else self.downsample(hidden)
        hidden = self.conv1(hidden)
        for conv in (self.conv2, self.conv2b, self.conv3):
            hidden = conv(scaled_gelu(hidden))
        out: Tensor = shortcut + ALPHA * self.skipinit_gain * self.attn_last(hidden)
        return out


def make_stem(width: int) -> nn.Sequential:
    """Four 3×3 convolutions that double their channels up to `width` and quarter the grid."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    widths, strides = [3, width // 8, width // 4, width // 2, width], [2, 1, 1, 2]
    for i, stride in enumerate(strides, start=1):
        layers[f"conv{i}"] = ScaledConv(widths[i - 1], widths[i], 3, stride)
        if i < len(strides):
            layers[f"act{i + 1}"] = Act()
    return nn.Sequential(layers)


def make_stage(
    widths: tuple[int, int], numbers: tuple[int, int], group_width: int
) -> nn.Sequential:
    """A transition to the second width, then blocks of it; `numbers`: blocks of the last, of this.

    Each block adds alpha² to the variance; a transition, whose skip path is new, starts again at 1.
    """
    variances = [1 + numbers[0] * ALPHA**2, *(1 + i * ALPHA**2 for i in range(1, numbers[1]))]
    stride = 2 if numbers[0] else 1  # the stem has shrunk enough for the first stage
    blocks = [Block(widths[0], widths[1], stride, variances[0] ** -0.5, group_width, True)]
    for variance in variances[1:]:
        blocks.append(Block(widths[1], widths[1], 1, variance**-0.5, group_width, False))
    return nn.Sequential(*blocks)


class NFNet(nn.Module):
    """[N, 3, size, size] → [N, S, dim]: the grid, a 32nd of the picture a side, row by row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        widths, numbers = (config.widths[0] // 2, *config.widths), (0, *config.blocks)
        self.stem = make_stem(widths[0])
        self.stages = nn.Sequential(
            *(
                make_stage(width, number, config.group_width)
                for width, number in zip(pairwise(widths), pairwise(numbers), strict=True)
            )
        )
        self.final_conv = ScaledConv(widths[-1], config.dim, 1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                start_as_lecun(conv)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = scaled_gelu(self.final_conv(self.stages(self.stem(pixels))))  # [N, dim, h, w]
        return grid.flatten(2).transpose(1, 2)


def start_as_lecun(conv: nn.Conv2d) -> None:
    """Variance 1 / fan-in: far enough above `EPS` that standardising changes little."""
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)

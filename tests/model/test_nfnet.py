"""The paper's tower: published sizes and names, standardised filters, a signal of one scale."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flamingo_model.nfnet import NFNet, ScaledConv, SqueezeExcite, pad_same, scaled_gelu
from flamingo_model.vision import build_vision
from flamingo_model.vision_config import NFNET_BLOCKS, VisionConfig

TINY = VisionConfig(
    64, dim=96, kind="nfnet", widths=(16, 32, 48, 48), blocks=(1, 2, 3, 1), group_width=8
)
PUBLISHED = {  # millions of parameters, with a classifier of 1000 classes
    "f0": 71.49,
    "f1": 132.63,
    "f2": 193.78,
    "f3": 254.92,
    "f4": 316.07,
    "f5": 377.21,
    "f6": 438.36,
}
CONVS = ("conv1", "conv2", "conv2b", "conv3")


def tower(gain: float = 1.0, config: VisionConfig = TINY) -> NFNet:
    """A tower as made, its residual branches as open as `gain` says."""
    torch.manual_seed(0)
    made = NFNet(config).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("skipinit_gain"):
            parameter.fill_(gain)
    return made


def recorded_names(blocks: tuple[int, ...]) -> set[str]:
    """The keys of timm's `dm_nfnet_f*` without `head.fc`, read off its source."""
    convs = [f"stem.conv{i}" for i in (1, 2, 3, 4)] + ["final_conv"]
    others = []
    for stage, num in enumerate(blocks):
        convs.append(f"stages.{stage}.0.downsample.conv")
        for place in (f"stages.{stage}.{i}" for i in range(num)):
            convs += [f"{place}.{conv}" for conv in CONVS]
            others.append(f"{place}.skipinit_gain")
            others += [f"{place}.attn_last.{f}.{w}" for f in ("fc1", "fc2") for w in NAMES[:2]]
    return {f"{conv}.{name}" for conv in convs for name in NAMES} | set(others)


NAMES = ("weight", "bias", "gain")


@pytest.mark.parametrize("variant", NFNET_BLOCKS)
def test_published_towers_have_the_published_number_of_parameters(variant: str) -> None:
    with torch.device("meta"):
        made = NFNet(VisionConfig.nfnet(variant, 320))
    classifier = 3072 * 1000 + 1000
    millions = (sum(p.numel() for p in made.parameters()) + classifier) / 1e6
    assert millions == pytest.approx(PUBLISHED[variant], abs=0.01)


@pytest.mark.parametrize("variant", ["f0", "f6"])
def test_parameters_have_the_published_names(variant: str) -> None:
    with torch.device("meta"):
        made = NFNet(VisionConfig.nfnet(variant, 320))
    assert set(made.state_dict()) == recorded_names(NFNET_BLOCKS[variant])


def test_parameters_have_the_published_shapes() -> None:
    with torch.device("meta"):
        shapes = {
            k: list(v.shape) for k, v in NFNet(VisionConfig.nfnet("f0", 192)).named_parameters()
        }
    assert shapes["stem.conv1.weight"] == [16, 3, 3, 3]
    assert shapes["stem.conv4.gain"] == [128, 1, 1, 1]
    assert shapes["stages.0.0.conv2.weight"] == [128, 128, 3, 3]
    assert shapes["stages.2.0.downsample.conv.weight"] == [1536, 512, 1, 1]
    assert shapes["stages.3.1.conv2b.weight"] == [768, 128, 3, 3]  # groups of 128 channels
    assert shapes["stages.3.1.attn_last.fc1.weight"] == [768, 1536, 1, 1]
    assert shapes["stages.3.1.skipinit_gain"] == []
    assert shapes["final_conv.weight"] == [3072, 1536, 1, 1]


@pytest.mark.parametrize(("size", "num"), [(320, 100), (288, 81), (480, 225), (321, 121), (1, 1)])
def test_a_grid_is_a_32nd_of_the_picture_rounded_up(size: int, num: int) -> None:
    assert VisionConfig.nfnet("f6", size).num_tokens == num


@pytest.mark.parametrize("size", [1, 31, 32, 33, 64, 97])
def test_the_tower_gives_as_many_tokens_as_its_config_says(size: int) -> None:
    config = replace(TINY, image_size=size)
    tokens = build_vision(config)(torch.randn(2, 3, size, size))
    assert tokens.shape == (2, config.num_tokens, 96)


def literal(conv: ScaledConv) -> Tensor:
    """gain · (w - mean) / (std · √fan-in), one filter at a time."""
    filters = []
    for weight, gain in zip(conv.weight, conv.gain.flatten(), strict=True):
        mean = weight.sum() / weight.numel()
        variance = ((weight - mean) ** 2).sum() / weight.numel()
        filters.append(gain * (weight - mean) / torch.sqrt((variance + 1e-5) * weight.numel()))
    return torch.stack(filters)


def test_filters_are_standardised() -> None:
    conv = ScaledConv(6, 8, 3, groups=2).requires_grad_(False)
    conv.gain.copy_(torch.rand_like(conv.gain) + 0.5)
    torch.testing.assert_close(conv.standardised(), literal(conv))
    x = torch.randn(2, 6, 5, 5)
    expected = F.conv2d(x, literal(conv), conv.bias, padding=1, groups=2)
    torch.testing.assert_close(conv(x), expected)


def test_the_scale_and_mean_of_stored_weights_do_not_matter() -> None:
    conv = ScaledConv(4, 8, 3).requires_grad_(False)
    before = conv.standardised()
    conv.weight.mul_(5).add_(3)
    torch.testing.assert_close(conv.standardised(), before, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("size", "before", "after"), [(4, 0, 1), (5, 1, 1)])
def test_a_stride_pads_right_and_below_first(size: int, before: int, after: int) -> None:
    padded = pad_same(torch.ones(1, 1, size, size), kernel=3, stride=2)[0, 0]
    assert torch.equal(padded[:, before], F.pad(torch.ones(size), (before, after)))
    assert torch.equal(padded, padded.T)


def test_the_activation_keeps_the_variance_of_a_normal_signal() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert scaled_gelu(x).var().item() == pytest.approx(1, abs=0.02)


WIDE = replace(TINY, dim=512, widths=(256, 256), blocks=(12, 1), group_width=64)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_the_signal_keeps_its_scale_from_picture_to_tokens(gain: float) -> None:
    """Through the stem and twelve blocks; only the pooling of a transition shrinks noise."""
    made = tower(gain, WIDE)
    x = made.stem(torch.randn(4, 3, 32, 32))
    assert 0.5 < x.var() < 1.5
    x = made.stages[0](x)
    assert 0.5 < x.var() < 2
    assert 0.5 < scaled_gelu(made.final_conv(x)).var() < 3


def test_every_residual_branch_has_variance_one() -> None:
    for block in list(tower(config=WIDE).stages[0])[1:]:
        x = torch.randn(4, 256, 8, 8) / block.beta
        assert 0.5 < ((block(x) - x) / 0.2).var() < 1.5


def test_a_block_adds_the_variance_that_the_next_one_takes_away() -> None:
    made = tower()
    first, second, third = made.stages[2]
    betas = [block.beta for block in (first, second, third)]
    assert betas == pytest.approx([(1 + 2 * 0.04) ** -0.5, 1.04**-0.5, 1.08**-0.5])
    assert made.stages[0][0].beta == 1
    assert [block.downsample is None for block in made.stages[2]] == [False, True, True]


def test_a_fresh_block_is_its_shortcut() -> None:
    x = torch.randn(2, 48, 4, 4)
    assert torch.equal(tower(0).stages[2][1](x), x)


def test_a_block_is_the_published_formula() -> None:
    block, x = tower(gain=0.7).stages[1][0], torch.randn(2, 16, 8, 8)
    out = F.gelu(x) * 1.7015043497085571 * block.beta
    shortcut = block.downsample.conv(F.avg_pool2d(out, 2))
    for conv in (block.conv1, block.conv2, block.conv2b, block.conv3):
        out = conv(out if conv is block.conv1 else F.gelu(out) * 1.7015043497085571)
    gate = block.attn_last.fc2(F.relu(block.attn_last.fc1(out.mean((2, 3), keepdim=True))))
    expected = shortcut + 0.2 * 0.7 * 2 * gate.sigmoid() * out
    torch.testing.assert_close(block(x), expected)


def test_squeeze_excite_is_neutral_where_it_says_nothing() -> None:
    module, x = SqueezeExcite(16).requires_grad_(False), torch.randn(2, 16, 4, 4)
    module.fc2.weight.zero_()
    module.fc2.bias.zero_()  # type: ignore[union-attr]
    torch.testing.assert_close(module(x), x)


def test_channels_double_in_the_stem_and_groups_keep_their_width() -> None:
    made = tower()
    stem = [made.stem.get_submodule(f"conv{i}").weight.shape[0] for i in (1, 2, 3, 4)]
    assert all(b == 2 * a for a, b in pairwise(stem)) and stem[-1] == 8
    assert [stage[0].conv2.groups for stage in made.stages] == [1, 2, 3, 3]


def test_frames_do_not_meet() -> None:
    made, pixels = tower(), torch.randn(3, 3, 64, 64)
    alone = torch.cat([made(one) for one in pixels.split(1)])
    torch.testing.assert_close(made(pixels), alone, rtol=0, atol=1e-5)


def test_half_precision_stays_half_and_near() -> None:
    made, pixels = tower(), torch.randn(1, 3, 64, 64)
    expected, half = made(pixels), made.bfloat16()(pixels.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"widths": (16, 20, 48, 48)}, "multiples of 16"),
        ({"blocks": (1, 0, 1, 1)}, "at least 1 in every stage"),
        ({"group_width": 10}, "multiple of vision.group_width"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TINY, **changes)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(ValueError, match="NFNet 'f7' is not known"):
        VisionConfig.nfnet("f7", 320)

"""The numbers that shape a picture tower, and which towers they may not shape."""

from __future__ import annotations

from dataclasses import dataclass

from .media import Transform

NFNET_BLOCKS = {f"f{i}": (i + 1, 2 * i + 2, 6 * i + 6, 3 * i + 3) for i in range(7)}
"""Blocks per stage of the published NFNets, F0 … F6; all have the same widths."""


@dataclass(frozen=True)
class VisionConfig:
    """The frozen picture tower: pixels [N, 3, size, size] → tokens [N, S, dim].

    `widths` and `blocks` shape a `conv` tower; `patch_size` to `keep_class_token` a `clip` or an
    `idefics` tower, with the defaults of ViT-L/14.
    """

    image_size: int
    dim: int
    kind: str = "conv"
    widths: tuple[int, ...] = (32, 96, 192)
    blocks: tuple[int, ...] = (0, 1, 2)
    group_width: int = 128
    patch_size: int = 14
    num_layers: int = 24
    num_heads: int = 16
    ff_dim: int = 4096
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    keep_class_token: bool = False
    transform: str = "pad"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if self.kind not in _VISION_CHECKS:
            known = ", ".join(map(repr, _VISION_CHECKS))
            raise ValueError(f"vision.kind {self.kind!r} is not known; known: {known}")
        if len(self.widths) != len(self.blocks):
            raise ValueError("vision.widths and vision.blocks must be equally long")
        if self.keep_class_token and self.kind not in ("clip", "idefics"):
            raise ValueError("vision.keep_class_token needs a tower of kind 'clip' or 'idefics'")
        self.pixel_transform()  # raises for an unknown kind, as everything here does
        _VISION_CHECKS[self.kind](self)

    @classmethod
    def nfnet(cls, variant: str, image_size: int) -> VisionConfig:
        """A published NFNet, `f0` … `f6`, with the pixel statistics it was trained with."""
        if variant not in NFNET_BLOCKS:
            raise ValueError(f"NFNet {variant!r} is not known; known: {sorted(NFNET_BLOCKS)}")
        return cls(
            image_size,
            dim=3072,
            kind="nfnet",
            widths=(256, 512, 1536, 1536),
            blocks=NFNET_BLOCKS[variant],
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )

    def pixel_transform(self) -> Transform:
        """What turns a picture into this tower's pixels."""
        return Transform(self.transform, self.image_size, self.mean, self.std)

    @property
    def num_tokens(self) -> int:
        """Tokens per frame, S: the last grid flattened, and the class token where it is kept."""
        return self.num_patches + self.keep_class_token

    @property
    def num_patches(self) -> int:
        return _VISION_SIDES[self.kind](self) ** 2


def _check_conv(config: VisionConfig) -> None:
    stages = zip(config.widths, config.blocks, strict=True)
    if any(width < 1 or (blocks and width % 8) for width, blocks in stages):
        raise ValueError("vision.widths of stages with blocks must be multiples of 8")


def _check_clip(config: VisionConfig) -> None:
    if config.dim % config.num_heads:
        raise ValueError("vision.dim must be a multiple of vision.num_heads")
    if config.patch_size > config.image_size:
        raise ValueError("vision.patch_size must be at most vision.image_size")
    if config.activation not in ("quick_gelu", "gelu"):
        raise ValueError(
            f"vision.activation {config.activation!r} is not known; known: 'quick_gelu', 'gelu'"
        )


def _check_idefics(config: VisionConfig) -> None:
    _check_clip(config)
    if not config.keep_class_token:
        raise ValueError("vision.kind 'idefics' needs keep_class_token: its tower gives it, too")


def _check_nfnet(config: VisionConfig) -> None:
    if not config.widths or min(config.blocks) < 1:
        raise ValueError("vision.blocks of an nfnet must be at least 1 in every stage")
    if any(width < 16 or width % 16 for width in config.widths):
        raise ValueError("vision.widths of an nfnet must be multiples of 16")
    middles = [width // 2 for width in config.widths]
    if any(middle > config.group_width and middle % config.group_width for middle in middles):
        raise ValueError("half of each of vision.widths must be a multiple of vision.group_width")


def _conv_side(config: VisionConfig) -> int:
    return -(-config.image_size // int(2 ** len(config.widths)))  # a stage halves and rounds up


def _clip_side(config: VisionConfig) -> int:
    return config.image_size // config.patch_size


def _nfnet_side(config: VisionConfig) -> int:
    return -(-config.image_size // int(2 ** (len(config.widths) + 1)))  # its stem halves once more


_VISION_CHECKS = {
    "conv": _check_conv,
    "clip": _check_clip,
    "nfnet": _check_nfnet,
    "idefics": _check_idefics,
}
_VISION_SIDES = {
    "conv": _conv_side,
    "clip": _clip_side,
    "nfnet": _nfnet_side,
    "idefics": _clip_side,
}

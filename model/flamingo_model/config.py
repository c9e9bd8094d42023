"""Every number that shapes the network: frozen dataclasses that read and write `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, cast, get_args, get_type_hints

from .media import Transform

T = TypeVar("T")


def build(cls: type[T], values: Any) -> T:
    """A frozen config, and those inside it, from plain JSON values.

    Raises ValueError for an unknown or a missing key and for a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be an object, not {values!r}")
    hints = get_type_hints(cls)
    if unknown := sorted(values.keys() - hints.keys()):
        raise ValueError(f"{cls.__name__}: unknown keys {unknown}; known are {sorted(hints)}")
    read = {k: read_value(v, hints[k], f"{cls.__name__}.{k}") for k, v in values.items()}
    try:
        return cls(**read)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


def read_value(value: Any, hint: Any, name: str) -> Any:
    """One field from its JSON value; a plain int counts something, mostly at least one of it."""
    if dataclasses.is_dataclass(hint):
        return build(cast(type[Any], hint), value)
    value = tuple(value) if isinstance(value, list) else value
    if not fits(value, hint):
        kind = hint.__name__ if isinstance(hint, type) else hint
        raise ValueError(f"{name} must be {kind}, not {value!r}")
    lowest = 0 if name in _MAY_BE_NONE else 1
    if hint in (int, int | None) and value is not None and value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, not {value}")
    return value


_MAY_BE_NONE = {"ResamplerConfig.num_time_embeddings"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's type: int counts as float, bool as nothing else."""
    if isinstance(hint, GenericAlias):
        kinds = get_args(hint)
        if not isinstance(value, tuple):
            return False
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


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
        if self.keep_class_token and self.kind != "clip":
            raise ValueError("vision.keep_class_token needs a tower of kind 'clip'")
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
        return self.num_patches + (self.keep_class_token or self.kind == "idefics")

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
    "idefics": _check_clip,
}
_VISION_SIDES = {
    "conv": _conv_side,
    "clip": _clip_side,
    "nfnet": _nfnet_side,
    "idefics": _clip_side,
}

FEED_FORWARD_ACTIVATIONS = ("squared_relu", "gelu", "relu")
"""Of resampler and cross-attention; `resampler.py` says what each one does."""


def _check_activation(name: str, value: str) -> None:
    if value not in FEED_FORWARD_ACTIVATIONS:
        raise ValueError(f"{name} {value!r} is not known; known: {FEED_FORWARD_ACTIVATIONS}")


@dataclass(frozen=True)
class ResamplerConfig:
    """Perceiver Resampler (paper, section 3.1.1): any number of tokens → `num_latents`.

    `kind`: `perceiver`, or the paper's ablations `transformer` and `mlp`. With `has_projection`
    a linear map brings the tower's tokens to `dim`.
    """

    dim: int
    kind: str = "perceiver"
    has_projection: bool = False
    num_latents: int = 64
    num_layers: int = 6
    num_heads: int = 16
    head_dim: int = 96
    ff_mult: int = 4
    num_time_embeddings: int = 8  # 0: time is not told, the frames are simply joined
    activation: str = "squared_relu"
    query_key_norm: bool = False  # of each head

    def __post_init__(self) -> None:
        _check_activation("resampler.activation", self.activation)
        if self.kind not in ("perceiver", "transformer", "mlp"):
            raise ValueError(
                f"resampler.kind {self.kind!r} is not known; "
                "known: 'perceiver', 'transformer', 'mlp'"
            )


CROSS_ATTENTION_CHOICES = {
    "kind": ("flamingo", "idefics"),
    "media_rule": ("last", "last_in_prompt", "until_end_of_text", "legacy"),
}
"""What `cross_attention.py` has an entry for; it says what each one does."""


@dataclass(frozen=True)
class CrossAttentionConfig:
    """GATED XATTN-DENSE (paper, section 3.1.2), before every `interval`-th decoder layer.

    The rest are the paper's ablations: without `has_feed_forward` it is VANILLA XATTN, without
    `is_gated` it starts as no identity, and with `sees_all_media` a token sees every media so far.
    `kind` `idefics` has RMSNorms and SwiGLU; `media_rule` says which token sees which media.
    """

    interval: int = 1
    num_heads: int = 16
    head_dim: int = 128
    ff_mult: int = 4
    has_feed_forward: bool = True
    is_gated: bool = True
    sees_all_media: bool = False
    activation: str = "squared_relu"
    norm_media: bool = True
    placement: str = "first"
    kind: str = "flamingo"
    media_rule: str = "last"
    ff_dim: int | None = None  # this and the rest: IDEFICS only; None: ff_mult times the width
    norm_eps: float = 1e-6
    query_key_norm: bool = False  # of each head
    has_vector_gates: bool = False

    def __post_init__(self) -> None:
        _check_activation("cross_attention.activation", self.activation)
        choices = CROSS_ATTENTION_CHOICES | {"placement": tuple(_PLACES)}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"cross_attention.{name} {value!r} is not known; known: {known}")
        if self.kind == "idefics" and not (self.has_feed_forward and self.is_gated):
            raise ValueError("cross_attention.kind 'idefics' has a feed-forward and gates")
        if self.kind != "idefics" and (self.query_key_norm or self.has_vector_gates):
            raise ValueError(
                "query_key_norm and has_vector_gates need cross_attention.kind 'idefics'"
            )

    def has_block(self, layer: int) -> bool:
        """Blocks start "from the very first layer" (paper, section 3.1.2), or from the last of the
        first `interval` layers (OpenFlamingo).
        """
        return layer % self.interval == _PLACES[self.placement](self.interval)

    def num_blocks(self, num_layers: int) -> int:
        return sum(map(self.has_block, range(num_layers)))


_PLACES: dict[str, Callable[[int], int]] = {"first": lambda n: 0, "last": lambda n: n - 1}
"""Before which of every `interval` layers a cross-attention block stands."""


DECODER_CHOICES = {
    "norm": ("rms", "layer"),
    "block": ("pre_norm", "post_norm", "parallel", "parallel_shared"),
    "positions": (
        "rotary",
        "rotary_interleaved",
        "learned",
        "learned_offset_2",
        "alibi",
        "alibi_unrounded",
    ),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}
"""What the decoder has an entry for; `positions.py` and `decoder.py` say what each one does."""


@dataclass(frozen=True)
class DecoderConfig:
    """The frozen language model. The defaults are LLaMA's shape: pre-norm, RMSNorm, rotary
    positions, SwiGLU; the rest is what OPT, GPT-2, GPT-J, GPT-NeoX, Mistral and MPT need.
    """

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    ff_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    attention_bias: bool = False  # of q, k and v
    tie_embeddings: bool = True
    norm: str = "rms"
    norm_bias: bool = True  # RMSNorm has none
    block: str = "pre_norm"
    positions: str = "rotary"
    rotary_dim: int | None = None  # None: the whole head turns
    alibi_max_bias: float = 8.0
    activation: str = "silu"
    gated: bool = True
    out_bias: bool = False
    feed_forward_bias: bool = False
    head_bias: bool = False
    num_kv_heads: int | None = None  # None: one for each query head
    sliding_window: int | None = None  # tokens a query sees, itself included; None: all
    embed_dim: int | None = None  # None: `dim`, without projections
    query_key_norm: bool = False  # over the full width, before the split into heads
    final_norm: bool = True

    def __post_init__(self) -> None:
        for name, known in DECODER_CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"decoder.{name} {value!r} is not known; known: {known}")
        if self.positions.startswith("rotary"):
            self.check_rotary()
        if self.num_heads % self.kv_heads:
            raise ValueError("decoder.num_heads must be a multiple of decoder.num_kv_heads")
        if self.head_bias and self.tie_embeddings:
            raise ValueError("decoder.head_bias needs a head of its own: tie_embeddings false")

    def check_rotary(self) -> None:
        if self.head_dim % 2 and self.rotary_dim is None:
            raise ValueError("decoder.head_dim must be even: rotary positions turn pairs")
        if self.turned_dim % 2 or self.turned_dim > self.head_dim:
            raise ValueError("decoder.rotary_dim must be even and at most decoder.head_dim")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: what the cache holds."""
        return self.num_kv_heads or self.num_heads

    @property
    def turned_dim(self) -> int:
        """How much of a head rotary positions turn."""
        return self.rotary_dim or self.head_dim

    @property
    def token_dim(self) -> int:
        """Width of the token embeddings and of the head."""
        return self.embed_dim or self.dim


IMAGE_STYLES = ("token", "text", "idefics")
"""How a picture stands in a prompt; `prompt.py` says what each one does."""


@dataclass(frozen=True)
class SpecialTokens:
    """The texts of the tokens that carry structure; their ids come from the tokenizer.

    `image_style`: `image` is a `token`, or plain `text` of several tokens (flamingo-mini).
    """

    image: str = "<image>"
    end_of_chunk: str = "<|endofchunk|>"
    end_of_text: str = "<|endoftext|>"
    begin: str | None = None  # before every prompt, where the language model wants it
    image_style: str = "token"

    def __post_init__(self) -> None:
        if self.image_style not in IMAGE_STYLES:
            raise ValueError(
                f"tokens.image_style {self.image_style!r} is not known; known: {IMAGE_STYLES}"
            )

    def single(self) -> list[str]:
        """Those that are one special token each."""
        image = [] if self.image_style == "text" else [self.image]
        return [*image, self.end_of_chunk, self.end_of_text, *([self.begin] if self.begin else [])]


TEMPLATE_FAMILIES = (
    "paper",
    "openflamingo",
    "otter",
    "idefics",
    "flamingo_mini",
    "multimodal_gpt",
    "emoji",
)
"""Whose wording of a task a checkpoint was trained with: templates.py has them."""


@dataclass(frozen=True)
class FlamingoConfig:
    """The whole checkpoint. `name` is what clients send as `model`."""

    name: str
    vision: VisionConfig
    resampler: ResamplerConfig
    cross_attention: CrossAttentionConfig
    decoder: DecoderConfig
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    templates: str = "paper"
    format: str = "flamingo-native-1"

    def __post_init__(self) -> None:
        if self.format != "flamingo-native-1":
            raise ValueError(f"format {self.format!r} is not known; known: 'flamingo-native-1'")
        if self.templates not in TEMPLATE_FAMILIES:
            raise ValueError(
                f"templates {self.templates!r} is not known; known: {TEMPLATE_FAMILIES}"
            )
        if not self.resampler.has_projection and self.resampler.dim != self.vision.dim:
            raise ValueError("resampler.dim must equal vision.dim: the resampler has no projection")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlamingoConfig:
        return build(cls, values)

    @classmethod
    def load(cls, path: Path) -> FlamingoConfig:
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

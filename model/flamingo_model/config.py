"""Every number that shapes the network: frozen dataclasses that read and write `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, cast, get_args, get_type_hints

from .vision_config import VisionConfig

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

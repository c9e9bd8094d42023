"""Every number that shapes the network: frozen dataclasses that read and write `config.json`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .media import Transform

T = TypeVar("T")


def build(cls: type[T], values: dict[str, Any]) -> T:
    """A frozen config from a plain dict. Raises ValueError for an unknown or a missing key."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{cls.__name__}: unknown keys {unknown}; known are {sorted(fields)}")
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**tuples)
    except TypeError as error:
        raise ValueError(f"{cls.__name__}: {error}") from error


@dataclass(frozen=True)
class VisionConfig:
    """The frozen picture tower: pixels [N, 3, size, size] → tokens [N, S, dim]."""

    image_size: int
    dim: int
    kind: str = "conv"
    widths: tuple[int, ...] = (32, 96, 192)
    blocks: tuple[int, ...] = (0, 1, 2)
    transform: str = "pad"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        if self.kind != "conv":
            raise ValueError(f"vision.kind {self.kind!r} is not known; known: 'conv'")
        if len(self.widths) != len(self.blocks):
            raise ValueError("vision.widths and vision.blocks must be equally long")

    def pixel_transform(self) -> Transform:
        """What turns a picture into this tower's pixels."""
        return Transform(self.transform, self.image_size, self.mean, self.std)

    @property
    def num_tokens(self) -> int:
        """Tokens per frame, S: the last grid flattened."""
        return int(self.image_size // 2 ** len(self.widths)) ** 2


@dataclass(frozen=True)
class ResamplerConfig:
    """Perceiver Resampler (paper, section 3.1.1): any number of tokens → `num_latents`."""

    dim: int
    num_latents: int = 64
    num_layers: int = 6
    num_heads: int = 16
    head_dim: int = 96
    ff_mult: int = 4
    num_time_embeddings: int = 8


@dataclass(frozen=True)
class CrossAttentionConfig:
    """GATED XATTN-DENSE (paper, section 3.1.2), before every `interval`-th decoder layer."""

    interval: int = 1
    num_heads: int = 16
    head_dim: int = 128
    ff_mult: int = 4

    def has_block(self, layer: int) -> bool:
        """Blocks start "from the very first layer" (paper, section 3.1.2)."""
        return layer % self.interval == 0

    def num_blocks(self, num_layers: int) -> int:
        return -(-num_layers // self.interval)


@dataclass(frozen=True)
class DecoderConfig:
    """The frozen language model: pre-norm, RMSNorm, rotary positions, SwiGLU (LLaMA's shape)."""

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    ff_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_embeddings: bool = True


@dataclass(frozen=True)
class SpecialTokens:
    """The texts of the tokens that carry structure; their ids come from the tokenizer."""

    image: str = "<image>"
    end_of_chunk: str = "<|endofchunk|>"
    end_of_text: str = "<|endoftext|>"


@dataclass(frozen=True)
class FlamingoConfig:
    """The whole checkpoint. `name` is what clients send as `model`."""

    name: str
    vision: VisionConfig
    resampler: ResamplerConfig
    cross_attention: CrossAttentionConfig
    decoder: DecoderConfig
    tokens: SpecialTokens = field(default_factory=SpecialTokens)
    format: str = "flamingo-native-1"

    def __post_init__(self) -> None:
        if self.format != "flamingo-native-1":
            raise ValueError(f"format {self.format!r} is not known; known: 'flamingo-native-1'")
        if self.resampler.dim != self.vision.dim:
            raise ValueError("resampler.dim must equal vision.dim: the resampler has no projection")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FlamingoConfig:
        parts: dict[str, type[Any]] = {
            "vision": VisionConfig,
            "resampler": ResamplerConfig,
            "cross_attention": CrossAttentionConfig,
            "decoder": DecoderConfig,
            "tokens": SpecialTokens,
        }
        built = {k: build(parts[k], v) if k in parts else v for k, v in values.items()}
        return build(cls, built)

    @classmethod
    def load(cls, path: Path) -> FlamingoConfig:
        return cls.from_dict(json.loads(path.read_text()))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

"""The paper's own models by name: Flamingo-3B, -9B and -80B (its table 1 and section A.1.1).

Where the paper's numbers disagree, its shapes are kept: heads, widths, layers, intervals. Language
models and totals are then within 2% of its counts, the tower is exact, and these are not:

- the resampler has 175M parameters for 194M, whatever else the paper counts there;
- cross-attention has 1.16B, 1.80B and 8.4B for 1.2B, 1.6B and 10B. The paper's three fit latents
  as wide as the language model (12 D² a block) and, in the 9B, 8 blocks in 32 layers. A language
  model of 7.1B would have those 32, too, but the paper's table says 40.
"""

from __future__ import annotations

from .config import (
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    ResamplerConfig,
    SpecialTokens,
)
from .vision_config import VisionConfig


def chinchilla(num_layers: int, dim: int, ff_dim: int) -> DecoderConfig:
    """A stand-in with Chinchilla's layers, width, heads and number of parameters.

    Chinchilla has a plain GELU feed-forward of 4 D and projects relative positions: 13 D² a layer.
    Gated, a feed-forward of 3 D gives the same. This is the one place to change for its shape.
    """
    return DecoderConfig(
        vocab_size=32_000,
        dim=dim,
        num_layers=num_layers,
        num_heads=dim // 128,
        head_dim=128,
        ff_dim=ff_dim,
        max_positions=2048,
    )


def flamingo(
    name: str, decoder: DecoderConfig, interval: int, variant: str = "f6"
) -> FlamingoConfig:
    """What all of the paper's models share, around a language model."""
    return FlamingoConfig(
        name=name,
        vision=VisionConfig.nfnet(variant, image_size=320),
        resampler=ResamplerConfig(dim=1536, has_projection=True),
        cross_attention=CrossAttentionConfig(interval, num_heads=decoder.num_heads),
        decoder=decoder,
        tokens=SpecialTokens(end_of_chunk="<EOC>", end_of_text="<EOS>"),
    )


PRESETS = {
    preset.name: preset
    for preset in (
        flamingo("flamingo-3b", chinchilla(24, 2048, ff_dim=6144), interval=1),
        # with 3 D its language model would have 8.9B parameters, not 7.1B
        flamingo("flamingo-9b", chinchilla(40, 4096, ff_dim=8640), interval=4),
        flamingo("flamingo-80b", chinchilla(80, 8192, ff_dim=24_576), interval=7),
    )
}

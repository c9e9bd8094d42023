"""A Flamingo with random weights, a byte tokenizer and every feature, small enough for
milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from flamingo_model.checkpoints.native import save_native
from flamingo_model.config import (
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    ResamplerConfig,
)
from flamingo_model.flamingo import Flamingo
from flamingo_model.vision_config import VisionConfig

SPECIAL = ("<|endoftext|>", "<|endofchunk|>", "<image>")


def tiny_tokenizer() -> Tokenizer:
    """One token a byte, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def tiny_config(interval: int = 1) -> FlamingoConfig:
    return FlamingoConfig(
        name="tiny",
        vision=VisionConfig(image_size=16, dim=24, widths=(8, 16), blocks=(0, 1)),
        resampler=ResamplerConfig(
            dim=24, num_latents=4, num_layers=2, num_heads=2, head_dim=8, num_time_embeddings=3
        ),
        cross_attention=CrossAttentionConfig(interval=interval, num_heads=2, head_dim=8, ff_mult=2),
        decoder=DecoderConfig(
            vocab_size=264,
            dim=32,
            num_layers=3,
            num_heads=2,
            head_dim=16,
            ff_dim=48,
            max_positions=256,
            attention_bias=True,
            tie_embeddings=False,
        ),
    )


def tiny_model(
    seed: int = 0, gate: float = 0.7, interval: int = 1, config: FlamingoConfig | None = None
) -> Flamingo:
    """Gates open (unless `gate` is 0), so that pictures matter."""
    torch.manual_seed(seed)
    model = Flamingo(config or tiny_config(interval))
    for block in model.cross_attention:
        for parameter in (block.attention_gate, block.feed_forward_gate):
            if parameter is not None:
                parameter.data.fill_(gate)
    return model.eval().requires_grad_(False)


def save_tiny(folder: Path, seed: int = 0) -> Path:
    save_native(tiny_model(seed), tiny_tokenizer(), folder, torch.float32)
    return folder

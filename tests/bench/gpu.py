"""Decoding on a GPU with random weights in the shape of OpenFlamingo-3B, bfloat16.

One sequence: how fast weights are read, beside the device's own copy, with cross-attention and
without. Then 32 clients through the engine. `--tiny` runs a small model on any device: that checks
this script, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from fakes import Answer, drive, submit
from flamingo_model.cache import BlockCache, MediaSlots
from flamingo_model.config import (
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    ResamplerConfig,
    VisionConfig,
)
from flamingo_model.decode_graph import DecodeGraphs, DecodeRow
from flamingo_model.flamingo import Flamingo
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from tiny import tiny_config, tiny_tokenizer

SIZES = {"num_heads": 8, "head_dim": 64, "activation": "gelu"}
OPENFLAMINGO_3B = FlamingoConfig(
    name="openflamingo-3b-shaped",
    vision=VisionConfig(224, dim=1024, kind="clip"),
    resampler=ResamplerConfig(dim=1024, num_time_embeddings=0, **SIZES),
    cross_attention=CrossAttentionConfig(norm_media=False, placement="last", **SIZES),
    decoder=DecoderConfig(
        vocab_size=50_432,
        dim=2048,
        num_layers=24,
        num_heads=16,
        head_dim=128,
        ff_dim=8192,
        max_positions=2048,
        norm="layer",
        norm_bias=False,
        norm_eps=1e-5,
        positions="alibi_unrounded",
        query_key_norm=True,
        activation="gelu",
        gated=False,
    ),
)
CONTEXT = 512  # tokens that a decoding one has before it
CLIENTS, NEW_TOKENS, REPEATS = 32, 64, 5
LIMITS = EngineLimits(max_running=CLIENTS, max_length=1024, num_blocks=4096)


def random_model(config: FlamingoConfig, device: torch.device, dtype: torch.dtype) -> Flamingo:
    torch.manual_seed(0)
    with torch.device(device):
        model = Flamingo(config)
    return model.to(device, dtype).eval().requires_grad_(False)


def seconds(call: Callable[[], object], device: torch.device, times: int = 50) -> float:
    """The least of several means."""

    def mean() -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / times

    return min(mean() for _ in range(1 + REPEATS))


def bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written per second by a copy."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / seconds(lambda: target.copy_(source), device, times=10)


def decoded_bytes(model: Flamingo) -> int:
    """Of the weights that a decoding step reads; of the embedding a tied head reads all."""
    unread = ("vision.", "resampler.", "to_kv.", "norm_media.")
    named = model.state_dict().items()
    return sum(x.nbytes for name, x in named if not any(part in name for part in unread))


def decode_seconds(model: Flamingo, device: torch.device) -> float:
    """Of one token of one sequence, behind CONTEXT others and a picture."""
    dtype, num_blocks = model.decoder.embed.weight.dtype, CONTEXT // LIMITS.block_size + 1
    cache = BlockCache(model.config, num_blocks, LIMITS.block_size, device, dtype)
    media = MediaSlots(model.config, 1, device, dtype)
    graphs = DecodeGraphs(model, cache, media, 1, num_blocks)
    blocks = range(1, num_blocks + 1)
    row = DecodeRow(5, CONTEXT, CONTEXT + LIMITS.block_size, blocks, [0])
    return seconds(lambda: graphs.run([row]), device)


def without_pictures(config: FlamingoConfig) -> FlamingoConfig:
    beyond = config.decoder.num_layers + 1
    cross = replace(config.cross_attention, interval=beyond, placement="last")
    return replace(config, cross_attention=cross)


def tokens_per_second(model: Flamingo, num_clients: int) -> float:
    """All at once through the engine, each with a picture of its own; encoding included."""
    engine = Engine(model.config, Runner(model, LIMITS), tiny_tokenizer(), LIMITS)
    sampling = Sampling(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
    rng, size = np.random.default_rng(0), model.config.vision.image_size

    def ask() -> Answer:
        pixels = rng.integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        ids = [2, *rng.integers(3, 200, 20).tolist()]
        media = [Media(pixels, str(rng.integers(2**60)))]
        return submit(engine, Prompt(ids, [0] * len(ids), media), sampling)

    def run() -> float:
        started, answers = time.perf_counter(), [ask() for _ in range(num_clients)]
        drive(engine)
        num_tokens = sum(len(answer.token_ids()) for answer in answers)
        assert num_tokens == num_clients * NEW_TOKENS, "an answer ended early"
        return num_tokens / (time.perf_counter() - started)

    return max(run() for _ in range(2))  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="check the script, on any device")
    is_tiny = parser.parse_args().tiny
    if not (is_tiny or torch.cuda.is_available()):
        print("no CUDA device here: nothing measured")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, dtype = OPENFLAMINGO_3B, torch.bfloat16
    if is_tiny:
        config, dtype = tiny_config(), torch.float32
    limit = bandwidth(device, 2**20 if is_tiny else 2**31)
    print(f"{config.name} on {device}, {dtype}; a copy moves {limit / 1e9:.0f} GB/s")
    print("decoding, one sequence      ms/token  weights GB  GB/s  of a copy's")
    rates = []
    for name, shape in (("", config), ("without ", without_pictures(config))):
        model = random_model(shape, device, dtype)
        num_bytes, spent = decoded_bytes(model), decode_seconds(model, device)
        rates.append(num_bytes / spent)
        print(
            f"{name + 'cross-attention':24} {spent * 1e3:11.3f} {num_bytes / 1e9:11.2f}"
            f" {rates[-1] / 1e9:5.0f} {rates[-1] / limit:12.2f}"
        )
    print(f"bytes per second with cross-attention ÷ without: {rates[0] / rates[1]:.2f}")
    model = random_model(config, device, dtype)
    for num_clients in (1, CLIENTS):
        speed = tokens_per_second(model, num_clients)
        print(f"{num_clients:3} clients through the engine: {speed:8.0f} tokens/s")


if __name__ == "__main__":
    main()

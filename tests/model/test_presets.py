"""The paper's models have the paper's shapes, and its numbers of parameters where those agree."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from flamingo_model.config import FlamingoConfig
from flamingo_model.flamingo import Flamingo
from flamingo_model.presets import PRESETS, flamingo

NAMES = ("flamingo-3b", "flamingo-9b", "flamingo-80b")
TOTALS = dict(zip(NAMES, (3.2, 9.3, 80.0), strict=True))
LANGUAGE_MODELS = dict(zip(NAMES, (1.4, 7.1, 70.0), strict=True))


def meta(config: FlamingoConfig) -> Flamingo:
    with torch.device("meta"):
        return Flamingo(config)


def billions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e9


@pytest.mark.parametrize("name", NAMES)
def test_totals_and_language_models_are_the_papers_within_two_percent(name: str) -> None:
    model = meta(PRESETS[name])
    assert billions(model) == pytest.approx(TOTALS[name], rel=0.02)
    assert billions(model.decoder) == pytest.approx(LANGUAGE_MODELS[name], rel=0.02)
    assert billions(model.vision) == pytest.approx(0.435, rel=0.002)


@pytest.mark.parametrize(
    ("name", "found", "papers"),
    [("flamingo-3b", 1.158, 1.2), ("flamingo-9b", 1.804, 1.6), ("flamingo-80b", 8.356, 10)],
)
def test_cross_attention_counts_are_as_the_presets_admit(
    name: str, found: float, papers: float
) -> None:
    model = meta(PRESETS[name])
    assert billions(model.cross_attention) == pytest.approx(found, rel=0.001)
    assert billions(model.cross_attention) == pytest.approx(papers, rel=0.17)
    assert billions(model.resampler) == pytest.approx(0.1747, rel=0.001)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("flamingo-3b", (24, 2048, 16, 24)),
        ("flamingo-9b", (40, 4096, 32, 10)),
        ("flamingo-80b", (80, 8192, 64, 12)),
    ],
)
def test_shapes_are_the_papers(name: str, shape: tuple[int, ...]) -> None:
    config = PRESETS[name]
    decoder, cross, resampler = config.decoder, config.cross_attention, config.resampler
    num_blocks = cross.num_blocks(decoder.num_layers)
    assert (decoder.num_layers, decoder.dim, decoder.num_heads, num_blocks) == shape
    assert (cross.num_heads, cross.head_dim, cross.ff_mult) == (decoder.num_heads, 128, 4)
    assert (resampler.num_layers, resampler.num_heads, resampler.head_dim) == (6, 16, 96)
    assert (resampler.dim, resampler.num_latents, resampler.num_time_embeddings) == (1536, 64, 8)
    assert (config.vision.image_size, config.vision.num_tokens) == (320, 100)


@pytest.mark.parametrize("name", NAMES)
def test_presets_survive_json(name: str) -> None:
    values = json.loads(PRESETS[name].to_json())
    assert FlamingoConfig.from_dict(values) == PRESETS[name]


BASE = PRESETS["flamingo-3b"]
CROSS, RESAMPLER = BASE.cross_attention, BASE.resampler


@pytest.mark.parametrize(
    ("ablated", "papers"),
    [
        (replace(BASE, cross_attention=replace(CROSS, is_gated=False)), 0.0),
        (replace(BASE, cross_attention=replace(CROSS, has_feed_forward=False)), -0.8),
        (replace(BASE, cross_attention=replace(CROSS, interval=4)), -0.9),
        (replace(BASE, cross_attention=replace(CROSS, interval=2)), -0.6),
        (replace(BASE, resampler=replace(RESAMPLER, kind="mlp")), 0.0),
        (replace(BASE, resampler=replace(RESAMPLER, kind="transformer")), 0.0),
        (flamingo("f0", BASE.decoder, 1, variant="f0"), -0.3),
    ],
    ids=["no gate", "vanilla", "every 4th", "every 2nd", "mlp", "transformer", "f0"],
)
def test_ablations_change_the_size_as_the_papers_table_says(
    ablated: FlamingoConfig, papers: float
) -> None:
    """Its table gives one decimal of 3.2B, so that a difference may be off by 0.1."""
    assert billions(meta(ablated)) - billions(meta(BASE)) == pytest.approx(papers, abs=0.1)

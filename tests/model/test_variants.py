"""What published checkpoints have otherwise than the paper: each an option of its own."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flamingo_model.config import CrossAttentionConfig, FlamingoConfig, ResamplerConfig
from flamingo_model.cross_attention import GatedCrossAttention
from flamingo_model.flamingo import Flamingo
from flamingo_model.resampler import FeedForward, PerceiverResampler
from forward import IMAGE, dense, pictures
from tiny import tiny_config

RESAMPLER = tiny_config().resampler


def test_the_feed_forward_may_be_an_exact_gelu() -> None:
    part, x = FeedForward(24, 2, "gelu"), torch.randn(5, 24)
    expected = F.gelu(F.layer_norm(x, (24,)) @ part.up.weight.T) @ part.down.weight.T
    torch.testing.assert_close(part(x), expected)


def test_both_blocks_take_the_activation_of_their_config() -> None:
    resampler = PerceiverResampler(replace(RESAMPLER, activation="gelu"))
    block = GatedCrossAttention(32, 24, CrossAttentionConfig(activation="gelu"))
    parts = [*(layer.feed_forward for layer in resampler.layers), block.feed_forward]
    assert {part.activation for part in parts} == {F.gelu}


def test_pictures_may_be_projected_as_they_are() -> None:
    block = GatedCrossAttention(32, 24, CrossAttentionConfig(2, 2, 8, norm_media=False))
    latents = 5 + torch.randn(4, 24)
    keys = (latents @ block.to_kv.weight.T).chunk(2, dim=-1)[0].unflatten(-1, (2, 8))
    torch.testing.assert_close(block.project_media(latents)[0], keys.transpose(0, 1))
    assert not any(name.startswith("norm_media") for name in block.state_dict())


def test_without_time_embeddings_frames_are_simply_joined() -> None:
    resampler = PerceiverResampler(replace(RESAMPLER, num_time_embeddings=0)).eval()
    film = torch.randn(1, 3, 5, 24)
    joined = resampler(film.flatten(1, 2).unsqueeze(1))
    torch.testing.assert_close(resampler(film), joined)
    torch.testing.assert_close(resampler(film.flip(1)), joined, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("interval", "placement", "layers"),
    [(1, "first", [0, 1, 2, 3, 4]), (1, "last", [0, 1, 2, 3, 4]), (2, "first", [0, 2, 4])]
    + [(2, "last", [1, 3]), (4, "first", [0, 4]), (4, "last", [3]), (6, "last", [])],
)
def test_blocks_stand_before_one_of_every_few_layers(
    interval: int, placement: str, layers: list[int]
) -> None:
    config = CrossAttentionConfig(interval, placement=placement)
    assert [layer for layer in range(5) if config.has_block(layer)] == layers
    assert config.num_blocks(5) == len(layers)


def test_a_block_before_the_second_layer_leaves_the_first_alone() -> None:
    config = tiny_config(interval=2)
    late = replace(config, cross_attention=replace(config.cross_attention, placement="last"))
    model = Flamingo(late).eval()
    model.cross_attention[0].attention_gate.data.fill_(0.7)
    seen: list[torch.Tensor] = []
    model.decoder.layers[1].register_forward_hook(lambda _, args, out: seen.append(args[0]))
    for seed in (0, 1):
        dense(model, [10, IMAGE, 11], pictures(1, seed))
    assert len(model.cross_attention) == 1
    assert torch.equal(seen[0][0, 0], seen[1][0, 0]) and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("part", "options", "said"),
    [
        (ResamplerConfig, {"dim": 8, "activation": "tanh"}, "resampler.activation 'tanh'"),
        (CrossAttentionConfig, {"activation": "tanh"}, "cross_attention.activation 'tanh'"),
        (CrossAttentionConfig, {"placement": "middle"}, "cross_attention.placement 'middle'"),
    ],
)
def test_an_unknown_option_is_named(part: type[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part(**options)


def test_none_may_be_counted_only_where_it_means_something() -> None:
    config = tiny_config()
    none = replace(config, resampler=replace(RESAMPLER, num_time_embeddings=0))
    assert FlamingoConfig.from_dict(as_json(none)) == none
    negative = replace(config, resampler=replace(RESAMPLER, num_time_embeddings=-1))
    with pytest.raises(ValueError, match="num_time_embeddings must be at least 0"):
        FlamingoConfig.from_dict(as_json(negative))


def as_json(config: FlamingoConfig) -> Any:
    return json.loads(config.to_json())

"""A config is what its JSON says, and nothing that its JSON says is dropped."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_model.config import (
    IMAGE_STYLES,
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    SpecialTokens,
)
from flamingo_model.vision_config import VisionConfig
from tiny import tiny_config


def changed(**changes: Any) -> dict[str, Any]:
    """The tiny config's JSON with `part__key` set; `...` takes the key away."""
    values: dict[str, Any] = json.loads(tiny_config().to_json())
    for path, value in changes.items():
        *parts, key = path.split("__")
        place = values[parts[0]] if parts else values
        place.pop(key, None) if value is ... else place.update({key: value})
    return values


def test_json_gives_the_config_back(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(tiny_config(interval=2).to_json())
    assert FlamingoConfig.load(tmp_path / "config.json") == tiny_config(interval=2)


@given(st.builds(SpecialTokens, image_style=st.sampled_from(IMAGE_STYLES)), st.text())
def test_any_text_survives_json(tokens: SpecialTokens, name: str) -> None:
    values = changed(tokens=vars(tokens), name=name)
    config = FlamingoConfig.from_dict(values)
    assert FlamingoConfig.from_dict(json.loads(config.to_json())) == config
    assert config.tokens == tokens and config.name == name


@pytest.mark.parametrize("path", ["extra", "vision__extra", "decoder__extra", "tokens__extra"])
def test_an_unknown_key_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['extra'\]; known are "):
        FlamingoConfig.from_dict(changed(**{path: 1}))


@pytest.mark.parametrize("path", ["name", "vision", "decoder__dim", "resampler__dim"])
def test_a_missing_key_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"missing .*'{path.split('__')[-1]}'"):
        FlamingoConfig.from_dict(changed(**{path: ...}))


def test_a_key_with_a_default_may_be_missing() -> None:
    config = FlamingoConfig.from_dict(changed(tokens=..., format=...))
    assert config == tiny_config()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("name", 3, "FlamingoConfig.name must be str, not 3"),
        ("vision", 3, "VisionConfig must be an object, not 3"),
        ("vision", None, "VisionConfig must be an object, not None"),
        ("decoder__dim", "32", "DecoderConfig.dim must be int, not '32'"),
        ("decoder__dim", 32.0, "DecoderConfig.dim must be int, not 32.0"),
        ("decoder__dim", True, "DecoderConfig.dim must be int, not True"),
        ("decoder__dim", None, "DecoderConfig.dim must be int, not None"),
        ("decoder__dim", 0, "DecoderConfig.dim must be at least 1, not 0"),
        ("decoder__attention_bias", 1, "DecoderConfig.attention_bias must be bool, not 1"),
        ("decoder__rope_theta", "big", "DecoderConfig.rope_theta must be float, not 'big'"),
        ("cross_attention__interval", 0, "interval must be at least 1, not 0"),
        ("vision__widths", 8, "VisionConfig.widths must be tuple[int, ...], not 8"),
        ("vision__widths", [8, "16"], "VisionConfig.widths must be tuple[int, ...]"),
        ("vision__mean", [0.5, 0.5], "VisionConfig.mean must be tuple[float, float, float]"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(path: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        FlamingoConfig.from_dict(changed(**{path: value}))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", "flamingo-native-2", "format 'flamingo-native-2' is not known"),
        ("vision__kind", "vit", "vision.kind 'vit' is not known; known: 'conv'"),
        ("vision__kind", "nfnet", "blocks of an nfnet must be at least 1 in every stage"),
        ("vision__transform", "fold", "unknown transform 'fold'"),
        ("vision__blocks", [1], "vision.widths and vision.blocks must be equally long"),
        ("vision__widths", [8, 12], "widths of stages with blocks must be multiples of 8"),
        ("decoder__head_dim", 15, "decoder.head_dim must be even"),
        ("resampler__dim", 25, "resampler.dim must equal vision.dim"),
        ("cross_attention__kind", "otter", "cross_attention.kind 'otter' is not known"),
        ("cross_attention__media_rule", "all", "media_rule 'all' is not known"),
        ("cross_attention__query_key_norm", True, "need cross_attention.kind 'idefics'"),
        ("cross_attention__has_vector_gates", True, "need cross_attention.kind 'idefics'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FlamingoConfig.from_dict(changed(**{path: value}))


@pytest.mark.parametrize("values", [[], "tiny", None, 1])
def test_a_config_must_be_an_object(values: Any) -> None:
    with pytest.raises(ValueError, match="FlamingoConfig must be an object"):
        FlamingoConfig.from_dict(values)


def test_whole_numbers_count_as_floats() -> None:
    config = FlamingoConfig.from_dict(changed(decoder__rope_theta=500, vision__std=[1, 1, 1]))
    assert config.decoder.rope_theta == 500 and config.vision.std == (1, 1, 1)


@given(st.integers(1, 100), st.integers(1, 100))
def test_blocks_start_at_the_first_layer_and_are_counted_right(layers: int, every: int) -> None:
    config = CrossAttentionConfig(interval=every)
    blocks = [layer for layer in range(layers) if config.has_block(layer)]
    assert blocks[0] == 0 and len(blocks) == config.num_blocks(layers)


@pytest.mark.parametrize(("layers", "every", "num"), [(24, 1, 24), (40, 4, 10), (80, 7, 12)])
def test_the_papers_models_have_the_papers_number_of_blocks(
    layers: int, every: int, num: int
) -> None:
    assert CrossAttentionConfig(interval=every).num_blocks(layers) == num


def test_configs_are_frozen_and_can_be_keys() -> None:
    assert len({tiny_config(), tiny_config(), tiny_config(2)}) == 2
    with pytest.raises(AttributeError):
        tiny_config().name = "other"  # type: ignore[misc]


def test_the_transform_is_the_towers_own() -> None:
    config = VisionConfig(image_size=16, dim=24, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    transform = config.pixel_transform()
    assert (transform.kind, transform.size) == ("pad", 16)
    assert (transform.mean, transform.std) == (config.mean, config.std)


def test_defaults_are_the_papers() -> None:
    cross = CrossAttentionConfig()
    assert (cross.interval, cross.head_dim, cross.ff_mult) == (1, 128, 4)
    assert not DecoderConfig(1, 1, 1, 1, 2, 1, 1).attention_bias

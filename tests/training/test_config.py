"""The TOML file: what is allowed is said, and nothing else is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flamingo_model.training.config import Config, ConfigError, load_config
from training.made import config

TEXT = """
[model]
base = "embedded"

[train]
steps = 10
what = ["resampler", "cross_attention", "lora"]

[[datasets]]
path = "pictures"
weight = 0.2
options = { root = "." }

[[datasets]]
path = "https://example.org/shard-{000..009}.tar"
augment = ["flip", "colour"]

[output]
folder = "runs/mine"
"""
WHAT = 'what = ["resampler", "cross_attention", "lora"]'


def load(folder: Path, text: str = TEXT) -> Config:
    path = folder / "train.toml"
    path.write_text(text)
    return load_config(path)


def test_a_file_is_read_and_its_paths_lie_beside_it(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found.model.base == "embedded"
    assert found.datasets[0].path == str(tmp_path / "pictures")
    assert found.datasets[1].path.startswith("https://")
    assert found.datasets[0].options == {"root": "."}
    assert found.output.label == "mine" and found.train.rate == 1e-4


def test_a_base_beside_the_file_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    assert load(tmp_path).model.base == str(tmp_path / "embedded")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 10", "steps = 10\nspeed = 3", "'speed' is not known; known: steps, stage"),
        ("steps = 10", 'steps = "10"', "train.steps must be int"),
        ("steps = 10", "steps = 0", "train.steps must be at least 1"),
        ("steps = 10", "", "steps"),
        ('"lora"]', '"decoder"]', "'decoder' is not known"),
        ("[model]", "[models]", "'models' is not known"),
        ('"flip"', '"turn"', "'turn' is not known"),
        ("weight = 0.2", "p_next = 2", "probability"),
        ("weight = 0.2", 'window = "last"', "'last' is not known; known: random, first"),
        ("[[datasets]]", "[[sets]]", "'sets' is not known"),
        ('base = "embedded"', "base =", "Invalid value"),
        ('base = "embedded"', 'base = "b"\nfresh = ["vision"]', "must be trained"),
        ("steps = 10", 'steps = 10\nstage = "language"', 'for the stage "flamingo"'),
        (WHAT, 'stage = "language"', 'output.kind must be "checkpoint"'),
        (WHAT, 'stage = "contrastive"\ngradient_checkpointing = true', "is not for the stage"),
        ("steps = 10", 'steps = 10\nprecision = "fp16"', "'fp16' is not known; known: fp32, bf16"),
        ('path = "pictures"', 'name = "shard-{000..009}"\npath = "a"', "need a `name`"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, TEXT.replace(old, new))


def test_a_config_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="something to learn"):
        config(tmp_path, {"held_out": True})


@pytest.mark.parametrize(
    ("tables", "same"),
    [
        ({"train": {"steps": 99}}, True),
        ({"train": {"save_every": 3}}, True),
        ({"output": {"folder": "other"}}, True),
        ({"train": {"seed": 1}}, False),
        ({"lora": {"rank": 2}}, False),
    ],
)
def test_the_fingerprint_is_of_what_decides_the_numbers(
    tmp_path: Path, tables: dict[str, Any], same: bool
) -> None:
    found, other = config(tmp_path), config(tmp_path, **tables)
    assert (found.fingerprint() == other.fingerprint()) == same

"""A CLIP is read from every form it is published in; its text side is passed over."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flamingo_model.checkpoints.clip import hf_config, read_clip
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.vision import build_vision
from flamingo_model.vision_config import VisionConfig
from golden_sets import GOLDEN

CLIP = GOLDEN / "of_clip_vit"
Values = dict[str, Any]


def copied(form: str, folder: Path) -> Path:
    shutil.copytree(CLIP / form, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return folder


def edit(path: Path, change: Callable[[Values], Values]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_weights(folder: Path, **weights: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    edited = {**load_file(path), **weights}
    save_file({k: v for k, v in edited.items() if v is not None}, path)


def refused(folder: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read_clip(folder)


def test_both_forms_hold_the_same_tower() -> None:
    (theirs, tensors), (others, same) = read_clip(CLIP / "hf"), read_clip(CLIP / "open_clip")
    assert theirs == others and tensors.keys() == same.keys()
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)


def test_the_tower_of_a_whole_clip_is_found(tmp_path: Path) -> None:
    copied("hf", tmp_path)
    edit(tmp_path / "config.json", lambda v: {"model_type": "clip", "vision_config": v})
    edit_weights(
        tmp_path,
        logit_scale=torch.ones(1),
        **{"text_model.final_layer_norm.weight": torch.ones(8)},
        **{"visual_projection.weight": torch.ones(8, 48)},
        **{"vision_model.embeddings.position_ids": torch.arange(17)},
    )
    config, weights = read_clip(tmp_path)
    assert (
        config == read_clip(CLIP / "hf")[0] and weights.keys() == read_clip(CLIP / "hf")[1].keys()
    )


def test_silence_of_a_config_means_what_it_means_to_transformers(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig

    path, theirs = tmp_path / "config.json", CLIPVisionConfig()
    path.write_text(json.dumps({"model_type": "clip_vision_model"}))
    found = hf_config(tmp_path)
    assert (found.dim, found.patch_size, found.image_size) == (
        theirs.hidden_size,
        theirs.patch_size,
        theirs.image_size,
    )
    assert (found.num_layers, found.num_heads, found.ff_dim) == (
        theirs.num_hidden_layers,
        theirs.num_attention_heads,
        theirs.intermediate_size,
    )
    assert (found.activation, found.norm_eps) == (theirs.hidden_act, theirs.layer_norm_eps)


def test_the_defaults_are_a_large_tower_with_patches_of_14() -> None:
    config = VisionConfig(224, 1024, "clip", widths=(), blocks=())
    assert config.num_tokens == 256


def test_open_clip_says_which_gelu(tmp_path: Path) -> None:
    copied("open_clip", tmp_path)
    (path,) = tmp_path.glob("ViT-*.json")
    edit(path, lambda v: v | {"quick_gelu": False})
    assert read_clip(tmp_path)[0].activation == "gelu"


def test_an_open_clip_tower_of_another_make_is_refused(tmp_path: Path) -> None:
    copied("open_clip", tmp_path)
    (path,) = tmp_path.glob("ViT-*.json")
    edit(path, lambda v: v | {"vision_cfg": v["vision_cfg"] | {"timm_model_name": "vit"}})
    refused(tmp_path, "vision_cfg asks for ['timm_model_name']")


def test_the_hubs_open_clip_config_is_read(tmp_path: Path) -> None:
    copied("open_clip", tmp_path)
    (path,) = tmp_path.glob("ViT-*.json")
    edit(path, lambda v: {"model_cfg": v, "preprocess_cfg": {}})
    path.rename(tmp_path / "open_clip_config.json")
    assert read_clip(tmp_path)[0] == read_clip(CLIP / "hf")[0]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    copied("hf", tmp_path)
    name = "vision_model.pre_layrnorm.weight"
    edit_weights(tmp_path, **{name: None, "lora": torch.ones(1)})
    refused(tmp_path, "missing: ['pre_layrnorm.weight']; leftover: ['lora']")
    edit_weights(tmp_path, **{name: torch.ones(7), "lora": None})
    refused(tmp_path, "wrongly shaped: ['pre_layrnorm.weight [7] for [48]']")


def test_an_unknown_tensor_of_open_clip_is_named(tmp_path: Path) -> None:
    copied("open_clip", tmp_path)
    path = tmp_path / "open_clip_pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    name = "visual.attn_pool.query"
    torch.save(weights | {name: torch.ones(1)}, path)
    refused(tmp_path, f"leftover: ['{name}']")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_type": "siglip_vision_model"}, "model_type 'siglip_vision_model' is not a CLIP"),
        ({"hidden_act": "relu"}, "vision.activation 'relu' is not known"),
        ({"num_attention_heads": 5}, "vision.dim must be a multiple of vision.num_heads"),
        ({"patch_size": 64}, "vision.patch_size must be at most vision.image_size"),
    ],
)
def test_a_config_that_we_cannot_follow_is_refused(
    tmp_path: Path, changed: Values, said: str
) -> None:
    copied("hf", tmp_path)
    edit(tmp_path / "config.json", lambda v: v | changed)
    refused(tmp_path, said)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "config.json")
    copied("open_clip", tmp_path)
    next(tmp_path.glob("ViT-*.json")).unlink()
    refused(tmp_path, "open_clip weights need one open_clip_config.json or ViT-….json")


def test_pixels_of_another_size_are_refused_by_the_tower() -> None:
    tower = build_vision(read_clip(CLIP / "hf")[0])
    with pytest.raises(ValueError, match="doesn't match"):
        tower(torch.zeros(1, 3, 40, 40))


def test_only_a_clip_tower_needs_transformers() -> None:
    """It takes seconds to import, and most installations do without."""
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from flamingo_model.checkpoints.native import EMBEDDED, load_native\n"
        "from flamingo_model.vision_config import VisionConfig\n"
        "from flamingo_model.vision import build_vision\n"
        "load_native(EMBEDDED)\n"
        "build_vision(VisionConfig(32, 48, 'clip'))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "ImportError: a CLIP tower needs transformers: flamingo-server[clip]" in ran.stderr

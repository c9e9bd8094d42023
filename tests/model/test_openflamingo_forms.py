"""The forms a `checkpoint.pt` comes in, and what is refused about each."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flamingo_model.checkpoints.language_models import MPT
from flamingo_model.checkpoints.native import load_native, save_native
from flamingo_model.checkpoints.openflamingo import (
    Trained,
    flamingo_config,
    open_openflamingo,
)
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.config import DecoderConfig, SpecialTokens
from flamingo_model.flamingo import Flamingo
from flamingo_model.vision_config import VisionConfig
from golden_sets import GOLDEN, model_and_tokenizer

SET = GOLDEN / "of_neox_x2"
CLIP = GOLDEN / "of_clip_vit" / "hf"
LAYER = "lang_encoder.gpt_neox.layers.1"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def released() -> Weights:
    weights: Weights = torch.load(SET / "checkpoint.pt", weights_only=True)
    return weights


@pytest.fixture(scope="module")
def expected() -> Weights:
    return load(SET / "checkpoint.pt").state_dict()


def load(checkpoint: Path, lm: Path = SET / "lm", vision: Path = CLIP, every: int = 2) -> Flamingo:
    return open_openflamingo(checkpoint, lm, vision, every).load()


def saved(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def refused(said: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=re.escape(said)):
        load(*arguments, **options)


def test_what_training_saves_is_the_same_checkpoint(
    tmp_path: Path, released: Weights, expected: Weights
) -> None:
    state = {f"module.{name}": tensor for name, tensor in released.items()}
    beside = {"epoch": 3, "optimizer_state_dict": {"state": {}, "param_groups": []}}
    path = saved(tmp_path, beside | {"model_state_dict": state})
    assert_same(load(path).state_dict(), expected)


def version_one(released: Weights) -> Weights:
    """With the blocks a second time, in a list of their own."""
    block = re.compile(r"lang_encoder\.gpt_neox\.layers\.(\d+)\.gated_cross_attn_layer\.")
    copies = {
        block.sub(r"lang_encoder.gated_cross_attn_layers.\1.", name): tensor
        for name, tensor in released.items()
        if block.match(name)
    }
    return released | copies


def test_the_copies_of_version_one_are_no_leftovers(
    tmp_path: Path, released: Weights, expected: Weights
) -> None:
    assert_same(load(saved(tmp_path, version_one(released))).state_dict(), expected)


def test_copies_that_disagree_are_named(tmp_path: Path, released: Weights) -> None:
    name = "lang_encoder.gated_cross_attn_layers.1.ff.1.weight"
    state = version_one(released)
    state[name] = state[name] + 1
    both = f"'{LAYER}.gated_cross_attn_layer.ff.1.weight and {name}'"
    refused(f"one tensor with two values: [{both}]", saved(tmp_path, state))


def whole_model(released: Weights, lm: Weights) -> Weights:
    """What `state_dict()` of a live model gives: layers under both of their names."""
    layer = re.compile(r"gpt_neox\.layers\.(\d+)\.")
    dump = dict(released)
    for name, tensor in lm.items():
        if layer.match(name):
            dump[layer.sub(r"lang_encoder.gpt_neox.layers.\1.decoder_layer.", name)] = tensor
            dump[layer.sub(r"lang_encoder.old_decoder_blocks.\1.", name)] = tensor
        elif "embed" not in name:
            dump[f"lang_encoder.{name}"] = tensor
    tower = torch.load(GOLDEN / "of_clip_vit/open_clip/open_clip_pytorch_model.bin")
    visual = {k.removeprefix("visual."): v for k, v in tower.items() if k.startswith("visual.")}
    return dump | {f"vision_encoder.{name}": tensor for name, tensor in visual.items()}


def test_a_dump_of_the_whole_model_is_the_same_checkpoint(
    tmp_path: Path, released: Weights, expected: Weights
) -> None:
    dump = whole_model(released, load_file(SET / "lm" / "model.safetensors"))
    assert_same(load(saved(tmp_path, dump)).state_dict(), expected)


def test_a_dump_wins_over_the_language_model_beside_it(tmp_path: Path, released: Weights) -> None:
    """Whoever trained the language model too wants that one."""
    weights = load_file(SET / "lm" / "model.safetensors")
    other = {name: tensor * 2 for name, tensor in weights.items()}
    found = load(saved(tmp_path, whole_model(released, other))).state_dict()
    theirs = other["gpt_neox.layers.3.mlp.dense_4h_to_h.weight"]
    assert torch.equal(found["decoder.layers.3.down.weight"], theirs)


def test_buffers_that_nobody_needs_are_passed_over(
    tmp_path: Path, released: Weights, expected: Weights
) -> None:
    buffers = ("bias", "masked_bias", "rotary_emb.inv_freq")
    names = [f"{LAYER}.decoder_layer.attention.{buffer}" for buffer in buffers]
    path = saved(tmp_path, released | dict.fromkeys(names, torch.ones(2)))
    assert_same(load(path).state_dict(), expected)


@pytest.mark.parametrize(
    "name",
    [
        "perceiver.latents",
        "perceiver.layers.5.1.3.weight",
        "perceiver.norm.bias",
        f"{LAYER}.gated_cross_attn_layer.attn_gate",
        f"{LAYER}.gated_cross_attn_layer.attn.to_kv.weight",
        "lang_encoder.gpt_neox.embed_in.weight",
    ],
)
def test_a_missing_tensor_is_named_as_in_the_file(
    tmp_path: Path, released: Weights, name: str
) -> None:
    state = {key: tensor for key, tensor in released.items() if key != name}
    refused(f"missing: ['{name}']", saved(tmp_path, state))


@pytest.mark.parametrize(
    "name",
    [
        "perceiver.frame_embs",
        "perceiver.layers.6.0.to_q.weight",
        "lang_encoder.gpt_neox.layers.0.gated_cross_attn_layer.attn_gate",
        "lang_encoder.gpt_neox.layers.1.decoder_layer.attention.bias_of_mine",
        "lora",
        "vision_encoder.head.weight",
    ],
)
def test_a_leftover_tensor_is_named_as_in_the_file(
    tmp_path: Path, released: Weights, name: str
) -> None:
    refused(f"leftover: ['{name}']", saved(tmp_path, released | {name: torch.zeros(1)}))


@pytest.mark.parametrize("name", ["perceiver.latents", f"{LAYER}.gated_cross_attn_layer.ff_gate"])
def test_a_wrong_shape_is_named(tmp_path: Path, released: Weights, name: str) -> None:
    state = released | {name: torch.zeros(3, 5)}
    refused(f"wrongly shaped: ['{name}", saved(tmp_path, state))


def test_a_wrong_interval_is_said_with_the_misfit() -> None:
    said = "does not fit the language model with cross-attention every 1 layers. missing"
    refused(said, SET / "checkpoint.pt", every=1)
    refused("cross-attention every 4 layers. leftover", SET / "checkpoint.pt", every=4)
    refused("the cross-attention interval 5 is not between 1 and", SET / "checkpoint.pt", every=5)


def test_another_language_model_does_not_fit() -> None:
    refused("leftover", SET / "checkpoint.pt", lm=GOLDEN / "of_mpt_x2" / "lm")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02]"])
def test_a_file_that_torch_cannot_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    refused("checkpoint.pt", tmp_path / "checkpoint.pt")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    refused("checkpoint.pt", saved(tmp_path, {"perceiver.latents": Evil()}))
    assert not (tmp_path / "ran").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    refused("checkpoint.pt", tmp_path / "checkpoint.pt")
    refused("tokenizer.json", SET / "checkpoint.pt", lm=tmp_path)
    refused(str(tmp_path), SET / "checkpoint.pt", vision=tmp_path)


# ---- vocabulary


def test_the_vocabulary_shrinks_to_the_tokenizer() -> None:
    model, tokenizer = model_and_tokenizer(
        open_openflamingo(SET / "checkpoint.pt", SET / "lm", CLIP, 2)
    )
    added = [tokenizer.token_to_id(t) for t in ("<|endofchunk|>", "<image>", "<PAD>")]
    assert added == [500, 501, 502] and model.config.decoder.vocab_size == 503
    assert len(model.decoder.embed.weight) == len(model.decoder.head.weight) == 503


def test_a_tokenizer_with_padding_gets_no_other() -> None:
    folder = GOLDEN / "of_opt_x1"
    model, tokenizer = model_and_tokenizer(
        open_openflamingo(folder / "checkpoint.pt", folder / "lm", CLIP, 1)
    )
    assert tokenizer.token_to_id("<PAD>") is None and model.config.decoder.vocab_size == 502


def smaller(folder: Path, num: int) -> Path:
    """The language model with its first `num` rows only."""
    shutil.copytree(SET / "lm", folder, copy_function=shutil.copyfile)
    weights = load_file(folder / "model.safetensors")
    for name in ("embed_out.weight", "gpt_neox.embed_in.weight"):
        weights[name] = weights[name][:num].clone()
    save_file(weights, folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"vocab_size": num}))
    return folder


def test_the_vocabulary_grows_to_the_tokenizer(
    tmp_path: Path, released: Weights, expected: Weights
) -> None:
    lm = smaller(tmp_path / "lm", 500)
    assert_same(load(SET / "checkpoint.pt", lm=lm).state_dict(), expected)


def test_tokens_that_a_head_never_learned_are_never_chosen(
    tmp_path: Path, released: Weights
) -> None:
    """The checkpoints on LLaMA have new rows for the embedding only."""
    state = {k: v for k, v in released.items() if k != "lang_encoder.embed_out.weight"}
    model = load(saved(tmp_path, state), lm=smaller(tmp_path / "lm", 500))
    logits = model.logits(torch.randn(20, 64))
    assert (logits[:, 500:] < logits[:, :500].min()).all()
    theirs = load_file(SET / "lm" / "model.safetensors")["embed_out.weight"][:500]
    assert torch.equal(model.decoder.head.weight[:500], theirs)


def test_it_may_be_saved_as_a_native_checkpoint(tmp_path: Path, expected: Weights) -> None:
    model, tokenizer = model_and_tokenizer(
        open_openflamingo(SET / "checkpoint.pt", SET / "lm", CLIP, 2)
    )
    save_native(model, tokenizer, tmp_path, torch.float32)
    again, _ = load_native(tmp_path)
    assert again.config == model.config
    assert_same(again.state_dict(), expected)
    pixels = torch.randn(1, 1, 3, 32, 32)
    assert torch.equal(again.encode_media(pixels), model.encode_media(pixels))


def test_a_checkpoint_is_named_after_its_folder(tmp_path: Path, released: Weights) -> None:
    (tmp_path / "OpenFlamingo-tiny").mkdir()
    assert load(saved(tmp_path / "OpenFlamingo-tiny", released)).config.name == "OpenFlamingo-tiny"


@pytest.mark.parametrize(
    ("dim", "num_layers", "interval", "size"),
    [(2048, 24, 1, 1_046_992_944), (4096, 32, 4, 1_384_781_840)],
    ids=["3B", "9B"],
)
def test_the_released_files_have_as_many_numbers_as_we_ask_for(
    dim: int, num_layers: int, interval: int, size: int
) -> None:
    """4.19 and 5.54 GB of float32: resampler, blocks and the embedding of 50,280 tokens."""
    vision = VisionConfig(224, 1024, "clip", widths=(), blocks=())
    decoder = DecoderConfig(50280, dim, num_layers, 16, dim // 16, 4 * dim, 2048)
    config = flamingo_config("released", vision, decoder, interval, SpecialTokens())
    trained = Trained(config, MPT)
    asked = (t.numel() for name, t in trained.expected.items() if trained.must_have(name))
    assert sum(asked) == size

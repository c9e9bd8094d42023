"""A checkpoint comes back as it was saved, or one error names what is wrong with it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models

from flamingo_model.checkpoints.native import CheckpointError, load_native, save_native
from forward import IMAGE, dense, pictures
from tiny import save_tiny, tiny_model, tiny_tokenizer

IDS = [10, IMAGE, 11, 12]
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def edit_config(folder: Path, part: str | None, key: str, value: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    place = values[part] if part else values
    place.pop(key, None) if value is ... else place.update({key: value})
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, edit: Callable[[Weights], object]) -> None:
    weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def refused(folder: Path, *named: str) -> None:
    """Loading raises a CheckpointError with all of `named` in its message."""
    with pytest.raises(CheckpointError) as caught:
        load_native(folder)
    assert all(name in str(caught.value) for name in (str(folder), *named)), str(caught.value)


def test_a_saved_model_comes_back_bit_by_bit(folder: Path) -> None:
    saved, (loaded, tokenizer) = tiny_model(), load_native(folder)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.config == saved.config and tokenizer.to_str() == tiny_tokenizer().to_str()
    assert torch.equal(dense(loaded, IDS, pictures(1)), dense(saved, IDS, pictures(1)))


def test_half_precision_loses_half_a_unit_in_the_eleventh_bit(tmp_path: Path) -> None:
    saved = tiny_model()
    save_native(saved, tiny_tokenizer(), tmp_path, torch.float16)
    assert load_file(tmp_path / "model.safetensors")["decoder.norm.weight"].dtype == torch.float16
    for name, tensor in load_native(tmp_path)[0].state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, saved.state_dict()[name], rtol=2**-11, atol=2**-24)


def test_weights_are_cast_to_the_type_asked_for(folder: Path) -> None:
    model, _ = load_native(folder, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}


def test_a_loaded_model_is_frozen_and_evaluates(folder: Path) -> None:
    model, _ = load_native(folder)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    edit_config(save_tiny(tmp_path), "decoder", "tie_embeddings", True)
    refused(tmp_path, "leftover: ['decoder.head.weight']")
    edit_weights(tmp_path, lambda weights: weights.pop("decoder.head.weight"))
    assert load_native(tmp_path)[0].config.decoder.tie_embeddings


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"it lacks ['{name}']")


def test_a_missing_folder_lacks_every_file(tmp_path: Path) -> None:
    refused(tmp_path / "none", "config.json", "model.safetensors", "tokenizer.json")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("resampler.latents"))
    refused(folder, "missing: ['resampler.latents']")


def test_a_leftover_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update(lora=torch.zeros(1)))
    refused(folder, "leftover: ['lora']")


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"resampler.latents": torch.zeros(5, 24)}))
    refused(folder, "wrongly shaped: ['resampler.latents [5, 24] for [4, 24]']")


def test_every_kind_of_problem_is_told_at_once(folder: Path) -> None:
    def spoil(weights: Weights) -> None:
        weights["extra"] = weights.pop("resampler.latents")
        weights["decoder.norm.weight"] = torch.zeros(1)

    edit_weights(folder, spoil)
    refused(folder, "missing: ['resampler", "leftover: ['extra", "wrongly shaped: ['decoder.norm")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_weights_file_is_refused(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "model.safetensors")


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        (None, "colour", "pink", "unknown keys ['colour']"),
        ("vision", "colour", "pink", "VisionConfig: unknown keys ['colour']"),
        ("decoder", "dim", ..., "missing 1 required positional argument: 'dim'"),
        ("decoder", "dim", "32", "DecoderConfig.dim must be int"),
        ("vision", "mean", 0.5, "VisionConfig.mean must be tuple"),
        ("resampler", "num_heads", 0, "ResamplerConfig.num_heads must be at least 1"),
        (None, "resampler", [], "ResamplerConfig must be an object"),
        (None, "format", "flamingo-native-9", "format 'flamingo-native-9' is not known"),
        ("vision", "kind", "vit", "vision.kind 'vit' is not known"),
        ("vision", "widths", [8, 12], "vision.widths"),
    ],
)
def test_a_wrong_config_is_refused(
    folder: Path, part: str | None, key: str, value: Any, named: str
) -> None:
    edit_config(folder, part, key, value)
    refused(folder, "config.json", named)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b'{"name": "a"}'])
def test_a_config_that_does_not_parse_is_refused(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    refused(folder, "config.json")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_tokenizer_that_does_not_parse_is_refused(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    refused(folder, "tokenizer.json")


def tokenizer_of(vocab: dict[str, int], *special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


@pytest.mark.parametrize("lacking", ["<image>", "<|endofchunk|>", "<|endoftext|>"])
@pytest.mark.parametrize("vocab", [{}, {"<image>": 0, "<|endofchunk|>": 1, "<|endoftext|>": 2}])
def test_a_tokenizer_without_a_special_token_is_refused(
    folder: Path, vocab: dict[str, int], lacking: str
) -> None:
    """A word of the vocabulary is not one: text could not be told from structure."""
    special = {"<image>", "<|endofchunk|>", "<|endoftext|>"} - {lacking}
    tokenizer_of(vocab, *special).save(str(folder / "tokenizer.json"))
    refused(folder, "tokenizer.json", f"lacks the special tokens ['{lacking}']")


@pytest.mark.parametrize("ids", [range(300), [263 + 1]], ids=["many", "with a hole"])
def test_a_tokenizer_beyond_the_vocabulary_is_refused(folder: Path, ids: list[int]) -> None:
    special = dict(zip(("<|endoftext|>", "<|endofchunk|>", "<image>"), range(3), strict=True))
    vocab = special | {f"word{i}": i for i in ids if i > 2}
    tokenizer_of(vocab, *special).save(str(folder / "tokenizer.json"))
    refused(folder, "tokenizer.json", "more tokens than the decoder's 264")


def test_a_tokenizer_may_be_smaller_than_the_vocabulary(folder: Path) -> None:
    edit_config(folder, "decoder", "vocab_size", 300)
    for name in ("decoder.embed.weight", "decoder.head.weight"):
        edit_weights(folder, lambda w, name=name: w.update({name: torch.zeros(300, 32)}))
    assert load_native(folder)[1].get_vocab_size() == 259


def test_problems_are_cut_short_when_everything_is_missing(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.clear())
    with pytest.raises(CheckpointError) as caught:
        load_native(folder)
    assert len(re.findall(r"'[a-z0-9_.]+'", str(caught.value))) == 8

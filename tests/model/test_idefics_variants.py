"""IDEFICS in the forms that the recorded checkpoint does not have, against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models
from torch import Tensor

from flamingo_model.attention import DenseCrossAttention
from flamingo_model.checkpoints.idefics import convert, idefics_config
from flamingo_model.checkpoints.native import save_native
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.config import SpecialTokens
from flamingo_model.cross_attention import MEDIA_RULES, MarkIds, media_mask
from flamingo_model.flamingo import Flamingo
from flamingo_model.prompt import MediaPart, PromptError, TextPart, build_renderer
from forward import run
from golden_sets import model_and_tokenizer

VALUES: dict[str, Any] = {
    "model_type": "idefics",
    "vocab_size": 60,
    "additional_vocab_size": 3,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "cross_layer_interval": 2,
    "use_resampler": True,
    "vision_config": {
        "embed_dim": 24,
        "image_size": 16,
        "patch_size": 8,
        "intermediate_size": 40,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
    },
    "perceiver_config": {
        "use_resampler": True,
        "resampler_depth": 2,
        "resampler_head_dim": 10,
        "resampler_n_heads": 2,
        "resampler_n_latents": 5,
    },
}
VECTORS = {"alpha_type": "vector"}
NORMS = {"qk_layer_norms": True}
RESAMPLER_NORMS = {
    "perceiver_config": VALUES["perceiver_config"] | {"qk_layer_norms_perceiver": True}
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "vector gates": VECTORS,
    "norms": NORMS,
    "norms in the resampler": RESAMPLER_NORMS,
    "80b": NORMS | RESAMPLER_NORMS | {"rms_norm_eps": 1e-5, "cross_layer_interval": 1},
    "no additional rows": {"additional_vocab_size": 0},
}
END, IMAGE = 2, 59
IDS = [1, 9, IMAGE, 10, END, 11, IMAGE, 12, 13]
MARKS = MarkIds(frozenset({IMAGE}), END)


def their_model(values: dict[str, Any]) -> hf.IdeficsForVisionText2Text:
    torch.manual_seed(0)
    model = hf.IdeficsForVisionText2Text(hf.IdeficsConfig(**values)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "alpha" in name:  # as made they are identities and zeros
            parameter.data += torch.randn_like(parameter) * 0.5
        elif parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * 0.15
    return model


def our_model(values: dict[str, Any], weights: dict[str, Tensor]) -> Flamingo:
    with torch.device("meta"):
        model = Flamingo(idefics_config(values, {}, "tiny", SpecialTokens()))
    model.load_state_dict(convert(weights, model.config, "the state dict"), assign=True)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str) -> None:
    values = VALUES | VARIANTS[name]
    theirs = their_model(values)
    ours = our_model(values, theirs.state_dict())
    index = torch.tensor([MEDIA_RULES["until_end_of_text"].prompt(IDS, MARKS)])
    mask, pixels = media_mask(index, 2), torch.randn(2, 3, 16, 16)
    expected = theirs(
        input_ids=torch.tensor([IDS]),
        attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
        pixel_values=pixels[None],
        image_attention_mask=mask.long(),
    ).logits[0]
    media = ours.project_media(ours.encode_media(pixels[:, None])[None])
    found = run(ours, IDS, DenseCrossAttention(media, mask))
    assert found.shape == (len(IDS), values["vocab_size"] + values["additional_vocab_size"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(ours, IDS, DenseCrossAttention(media, mask[..., [1, 0]])), found)


# Folders


SPECIAL = ("<unk>", "<s>", "</s>")
ADDED = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")


def tiny_tokenizer(is_instructed: bool = True) -> Tokenizer:
    words = {f"w{i}": i for i in range(len(SPECIAL), VALUES["vocab_size"])}
    vocab = {token: i for i, token in enumerate(SPECIAL)} | words
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    added = ADDED if is_instructed else ADDED[:2]
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (*SPECIAL, *added)])
    return tokenizer


def weights_of(values: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in their_model(values).state_dict().items()}


def save(folder: Path, values: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    save_file(weights, folder / "model.safetensors")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path, VALUES, weights_of(VALUES))


def refused(folder: Path, *named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert all(name in str(caught.value) for name in (str(folder), *named)), str(caught.value)


def test_one_file_loads_and_is_named_after_its_folder(folder: Path) -> None:
    model, tokenizer = model_and_tokenizer(open_checkpoint(folder))
    assert model.config.name == folder.name
    assert model.config.decoder.vocab_size == tokenizer.get_vocab_size() == 63
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {tensor.device.type for tensor in model.buffers()} == {"cpu"}


def test_it_can_be_kept_as_a_native_checkpoint(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = model_and_tokenizer(open_checkpoint(folder))
    save_native(model, tokenizer, tmp_path / "native", torch.float32)
    again = open_checkpoint(tmp_path / "native").load()
    pixels = torch.randn(1, 1, 3, 16, 16)
    assert again.config == model.config
    assert torch.equal(again.encode_media(pixels), model.encode_media(pixels))


def test_only_instructed_models_end_utterances(folder: Path) -> None:
    assert open_checkpoint(folder).load().config.tokens.end_of_chunk == "<end_of_utterance>"
    tiny_tokenizer(is_instructed=False).save(str(folder / "tokenizer.json"))
    expected = SpecialTokens("<image>", "</s>", "</s>", begin="<s>", image_style="idefics")
    assert open_checkpoint(folder).load().config.tokens == expected


def test_rotary_frequencies_of_older_files_are_passed_over(tmp_path: Path) -> None:
    weights = weights_of(VALUES)
    for place in ("layers.0.self_attn", "gated_cross_attn_layers.0.cross_attn"):
        weights[f"model.{place}.rotary_emb.inv_freq"] = torch.ones(6)
    open_checkpoint(save(tmp_path, VALUES, weights))


def test_what_is_missing_left_over_and_misshapen_is_named(tmp_path: Path) -> None:
    weights = weights_of(VALUES)
    value = weights.pop("model.perceiver_resampler.blocks.1.0.v_proj.weight")
    weights["model.perceiver_resampler.blocks.1.0.w_proj.weight"] = value
    weights["model.gated_cross_attn_layers.0.alpha_dense"] = torch.zeros(7)
    weights["lm_head.additional_fc.weight"] = torch.zeros(2, 48)
    refused(
        save(tmp_path, VALUES, weights),
        "missing: ['model.perceiver_resampler.blocks.1.0.v_proj.weight']",
        "leftover: ['model.perceiver_resampler.blocks.1.0.w_proj.weight']",
        "model.gated_cross_attn_layers.0.alpha_dense [7] for []",
        "lm_head.weight [60, 48], lm_head.additional_fc.weight [2, 48] for [63, 48]",
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"use_resampler": False}, "use_resampler False is not supported"),
        ({"alpha_type": "matrix"}, "alpha_type 'matrix' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True is not supported"),
        ({"cross_layer_interval": 0}, "CrossAttentionConfig.interval must be at least 1"),
        ({"hidden_size": "48"}, "config.json"),
        ({"vision_config": {"embed_dim": 25}}, "vision.dim must be a multiple"),
        ({"vision_config": 3}, "config.json"),
    ],
    ids=str,
)
def test_a_config_we_cannot_follow_is_refused(
    folder: Path, edit: dict[str, Any], named: str
) -> None:
    (folder / "config.json").write_text(json.dumps(VALUES | edit))
    refused(folder, named)


# Prompts


def test_a_prompt_has_a_start_and_pictures_in_a_row_share_a_fake_token(folder: Path) -> None:
    model, tokenizer = model_and_tokenizer(open_checkpoint(folder))
    fake, image, end = (tokenizer.token_to_id(token) for token in ADDED)
    utterance = TextPart("<end_of_utterance>", special_tokens=True)
    parts = [MediaPart(), MediaPart(), utterance, MediaPart()]
    prompt = build_renderer(tokenizer, model.config).render(parts)
    assert prompt.token_ids == [1, fake, image, fake, image, fake, end, fake, image, fake]
    assert prompt.media_index == [-1, -1, 0, 0, 1, 1, 1, 1, 2, 2]
    assert prompt.generated_media == 2


def test_an_end_of_text_ends_the_view_of_the_answer_too(folder: Path) -> None:
    model, tokenizer = model_and_tokenizer(open_checkpoint(folder))
    parts = [MediaPart(), TextPart("</s><end_of_utterance>", special_tokens=True)]
    prompt = build_renderer(tokenizer, model.config).render(parts)
    assert prompt.media_index == [-1, -1, 0, 0, 0, -1] and prompt.generated_media == -1


def test_an_empty_prompt_is_refused(folder: Path) -> None:
    model, tokenizer = model_and_tokenizer(open_checkpoint(folder))
    with pytest.raises(PromptError, match="the prompt is empty"):
        build_renderer(tokenizer, model.config).render([])


def test_a_tokenizer_without_fake_tokens_is_named(folder: Path) -> None:
    model, tokenizer = model_and_tokenizer(open_checkpoint(folder))
    bare = Tokenizer(models.BPE(vocab={"<image>": 0, "<s>": 1}, merges=[]))
    with pytest.raises(ValueError, match="lacks the special token <fake_token_around_image>"):
        build_renderer(bare, model.config)

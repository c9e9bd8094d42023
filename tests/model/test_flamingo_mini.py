"""flamingo-mini's checkpoints give the numbers that flamingo-mini itself gave for them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_model.attention import DenseCrossAttention, no_media
from flamingo_model.checkpoints.flamingo_mini import open_flamingo_mini
from flamingo_model.checkpoints.native import load_native, save_native
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.cross_attention import CrossAttend, last_marked_media, media_mask
from flamingo_model.flamingo import Flamingo
from flamingo_model.media import to_pixels
from flamingo_model.prompt import MediaPart, Part, PromptError, PromptRenderer, TextPart
from forward import Cached, Chunk, run
from golden_sets import GOLDEN, GoldenSet, model_and_tokenizer

FOLDER = GOLDEN / "fm_opt"
SET = GoldenSet(FOLDER)
SINGLE = ["image_only", "caption", "two_shot", "text_before", "consecutive", "text_only"]
WITH_ANSWERS = [(case, 0) for case in SINGLE] + [("batch_same", row) for row in range(3)]
ROWS = WITH_ANSWERS + [("batch_right_padded", row) for row in range(3)]
MARKERS = frozenset(SET.meta["leq_ids"])
PICTURES = sorted((GOLDEN / "preprocess" / "images").glob("*.png"))


@cache
def loaded() -> tuple[Flamingo, Tokenizer]:
    return model_and_tokenizer(open_flamingo_mini(FOLDER / "model", FOLDER / "lm", FOLDER / "clip"))


@cache
def renderer() -> PromptRenderer:
    model, tokenizer = loaded()
    return PromptRenderer(tokenizer, model.config.tokens)


class Row:
    """One prompt as the reference ran it, without the padding of its batch."""

    def __init__(self, case: str, number: int) -> None:
        arrays = SET.arrays(case)
        told = SET.meta["cases"].get(case) or SET.meta[case]
        mask = arrays["attention_mask"][number].bool()
        self.ids: list[int] = arrays["input_ids"][number][mask].tolist()
        self.logits = arrays["logits"][number][mask]
        self.text: str = told["texts"][number]
        num_pictures = len(told["images"][number])
        pixels = arrays.get("pixel_values", torch.zeros(1, 0, 3, 32, 32))
        self.pixels = pixels[number, :num_pictures].unsqueeze(1)  # [pictures, 1, 3, H, W]
        self.latents = arrays["visual_features"][number] if "visual_features" in arrays else None
        self.new_ids: list[int] = told.get("greedy_new_tokens", {number: []})[number]


def look(ids: list[int], latents: Tensor) -> CrossAttend:
    mask = media_mask(torch.tensor([last_marked_media(ids, MARKERS)]), len(latents))
    return DenseCrossAttention(loaded()[0].project_media(latents.unsqueeze(0)), mask)


@pytest.mark.parametrize(("case", "number"), ROWS)
def test_logits_are_the_references(case: str, number: int, record_property: Any) -> None:
    (model, _), row = loaded(), Row(case, number)
    seen = look(row.ids, model.encode_media(row.pixels)) if len(row.pixels) else no_media
    found = run(model, row.ids, seen)
    record_property("deviation", float((found - row.logits).abs().max()))
    torch.testing.assert_close(found, row.logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("case", "number"), [r for r in WITH_ANSWERS if r[0] != "text_only"])
def test_latents_are_the_references(case: str, number: int) -> None:
    """The class token among the patches, no last norm, and the first temporal embedding."""
    row = Row(case, number)
    torch.testing.assert_close(
        loaded()[0].encode_media(row.pixels), row.latents, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("case", "number"), WITH_ANSWERS)
def test_greedy_answers_are_the_references(case: str, number: int) -> None:
    (model, _), row = loaded(), Row(case, number)
    caches = Cached(model, length=64)
    if len(row.pixels):
        caches.show(list(range(len(row.pixels))), row.pixels)
    slots = last_marked_media(row.ids, MARKERS)
    (logits,) = caches.step(Chunk(0, row.ids, slots))
    new: list[int] = []
    while len(new) < len(row.new_ids):
        new.append(int(logits[-1].argmax()))
        place = len(row.ids) + len(new) - 1
        (logits,) = caches.step(decodes=[Chunk(0, new[-1:], slots[-1:], place)])
    assert new == row.new_ids and len(new) == 12


def test_scores_of_sequences_are_the_references() -> None:
    """Of the tokens in which they differ; the reference scores the padding behind them too."""
    (model, _), told = loaded(), SET.arrays("score_sequences")
    for ids, mask, score in zip(
        told["input_ids"], told["attention_mask"], told["scores"], strict=True
    ):
        hidden = model(
            ids.unsqueeze(0),
            (mask.cumsum(0) * mask - 1).unsqueeze(0),
            padded_attention(mask.bool()),
            look(ids.tolist(), told["visual_features"]),
        )
        chosen = model.logits(hidden)[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])
        common = int((told["input_ids"] == told["input_ids"][0]).all(0).long().cumprod(0).sum())
        assert float(chosen[common - 1 :].sum()) == pytest.approx(float(score), abs=2e-4)


def padded_attention(mask: Tensor) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
    """Causal, over one row whose padding nothing looks at."""
    hidden = ~(torch.ones(len(mask), len(mask)).tril().bool() & mask)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum(
            "bhqk,bkhd->bqhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v
        )

    return attend


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_pictures_become_the_references_pixels(path: Path) -> None:
    transform = loaded()[0].config.vision.pixel_transform()
    with Image.open(path) as picture, np.load(GOLDEN / "preprocess" / "flamingo_mini.npz") as told:
        found = transform.normalise(to_pixels(picture, transform))
        assert np.abs(found - told[path.stem]).max() <= 1e-6


# ---- prompts


def parts(text: str) -> list[Part]:
    found: list[Part] = []
    for number, piece in enumerate(text.split("<image>")):
        found += [MediaPart()] * (number > 0) + [TextPart(piece, special_tokens=True)] * bool(piece)
    return found


@pytest.mark.parametrize(("case", "number"), ROWS)
def test_prompts_become_the_references_tokens(case: str, number: int) -> None:
    row = Row(case, number)
    prompt = renderer().render(parts(row.text))
    assert prompt.token_ids == row.ids
    assert prompt.media_index == last_marked_media(row.ids, MARKERS)


def test_both_letters_mark_a_picture_and_one_space_before_it_is_its_own() -> None:
    plain, spaced = SET.meta["leq_ids"]
    assert renderer().marker.ids == {plain, spaced}
    for text, marker in [("a", plain), ("a ", spaced), ("a  ", spaced), ("", plain), (" ", spaced)]:
        prompt = renderer().render([TextPart(text), MediaPart()])
        assert [i for i in prompt.token_ids if i in MARKERS] == [marker]
        assert loaded()[1].decode(prompt.token_ids[1:]) == f"{text}<image>"


def with_merges(*pairs: tuple[str, str]) -> Tokenizer:
    """The tokenizer with a few merges of GPT-2's that it lacks."""
    values = json.loads((FOLDER / "lm" / "tokenizer.json").read_text())
    vocab, merges = values["model"]["vocab"], values["model"]["merges"]
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
        merges.append([left, right] if isinstance(merges[0], list) else f"{left} {right}")
    return Tokenizer.from_str(json.dumps(values))


@given(st.lists(st.text("a1 .>\n", max_size=4), min_size=2, max_size=4))
def test_tokens_are_those_of_the_whole_text_unless_that_loses_a_picture(texts: list[str]) -> None:
    tokenizer = with_merges(("Ċ", "Ċ"), ("Ġ", "Ġ"), (".", "<"), (">", "<"))
    whole = tokenizer.encode("<image>".join(texts), add_special_tokens=True).ids
    renderer = PromptRenderer(tokenizer, loaded()[0].config.tokens)
    prompt = renderer.render(parts("<image>".join(texts)))
    num_marked = sum(i in MARKERS for i in whole)
    assert max(prompt.media_index) + 1 == len(texts) - 1 >= num_marked
    assert tokenizer.decode(prompt.token_ids[1:]) == "<image>".join(texts)
    assert (prompt.token_ids == whole) == (num_marked == len(texts) - 1)


@pytest.mark.parametrize("text", ["a < b", "<image>", "<EOC>", "</s>", "a<", "->.<-", "<" * 9])
def test_a_literal_marker_in_text_is_refused_with_its_part(text: str) -> None:
    with pytest.raises(PromptError, match='every "<" for a picture') as caught:
        renderer().render([MediaPart(), TextPart("a"), TextPart(text), MediaPart()])
    assert caught.value.part == 2


def test_a_literal_marker_right_behind_a_picture_is_refused() -> None:
    with pytest.raises(PromptError) as caught:
        renderer().render([MediaPart(), TextPart("<")])
    assert caught.value.part == 1


def test_special_tokens_are_tokens_when_asked_for_and_no_pictures() -> None:
    prompt = renderer().render([TextPart("a<EOC>b</s>", special_tokens=True)])
    assert SET.meta["eoc_id"] in prompt.token_ids and SET.meta["eos_id"] in prompt.token_ids[1:]
    assert set(prompt.media_index) == {-1}


def test_an_empty_prompt_is_refused_though_it_would_have_a_first_token() -> None:
    with pytest.raises(PromptError, match="empty"):
        renderer().render([TextPart("")])


# ---- files


def copied(folder: Path) -> Path:
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("golden"))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model" / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    edit(weights)
    torch.save(weights, path)


def load(folder: Path) -> tuple[Flamingo, Tokenizer]:
    return model_and_tokenizer(open_flamingo_mini(folder / "model", folder / "lm", folder / "clip"))


@pytest.mark.parametrize(
    "name",
    [
        "flamingo.resampler.layers.1.0.to_v.weight",
        "flamingo.resampler.time_pos_emb",
        "flamingo.lm.decoder.layers.2.xattn_block.alpha_ffw",
        "flamingo.lm.decoder.layers.2.lm_block.fc1.bias",
        "flamingo.lm.decoder.layers.3.fc1.bias",
        "flamingo.lm.decoder.embed_positions.weight",
    ],
)
def test_missing_and_misshapen_tensors_are_named(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path / "c")
    change(folder, lambda weights: weights.update({name: torch.zeros(3, 3)}))
    with pytest.raises(CheckpointError, match=f"wrongly shaped: .*{name}"):
        load(folder)
    change(folder, lambda weights: weights.pop(name))
    with pytest.raises(CheckpointError, match=f"missing: .*'{name}'"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "flamingo.resampler.layers.2.0.to_q.weight",
        "flamingo.lm.decoder.layers.1.xattn_block.alpha_ffw",
        "flamingo.lm.decoder.layers.9.fc1.bias",
        "flamingo.vision_encoder.x.weight",
    ],
)
def test_leftover_tensors_are_named(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path / "c")
    change(folder, lambda weights: weights.update({name: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=f"leftover: .*{name}"):
        load(folder)


def test_a_head_that_left_the_embedding_is_kept(tmp_path: Path) -> None:
    folder = copied(tmp_path / "c")
    change(folder, lambda w: w.update({"flamingo.lm_head.weight": -w["flamingo.lm_head.weight"]}))
    model, _ = load(folder)
    ids = [2, 40, 50]
    assert not model.config.decoder.tie_embeddings
    assert torch.allclose(run(model, ids, no_media), -run(loaded()[0], ids, no_media))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("model", {"xattn_act": "tanh"}, "xattn_act 'tanh' is not known"),
        ("model", {"dim_visual": 64}, "dim_visual 64 is not the CLIP's 48"),
        ("model", {"resampler_depth": 1}, "leftover: .*resampler.layers.1"),
        ("lm", {"model_type": "llama"}, "the config lacks|no language model 'llama'"),
        ("lm", {"vocab_size": 499}, "the tokenizer has a token 500, the model 500 rows"),
        ("lm", {"eos_token_id": 9999}, "the tokenizer lacks eos_token_id 9999"),
    ],
)
def test_configs_that_do_not_fit_are_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    path = copied(tmp_path / "c") / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "c")


def test_a_tokenizer_in_its_first_form_gives_the_same_tokens(tmp_path: Path) -> None:
    """As in OPT's folders, which have no tokenizer.json."""
    folder = copied(tmp_path / "c")
    (folder / "lm" / "tokenizer.json").unlink()
    model, tokenizer = load(folder)
    assert tokenizer.get_vocab() == loaded()[1].get_vocab()
    first = PromptRenderer(tokenizer, model.config.tokens)
    for case, number in ROWS:
        row = Row(case, number)
        assert first.render(parts(row.text)).token_ids == row.ids
    (folder / "lm" / "special_tokens_map.json").unlink()
    with pytest.raises(CheckpointError, match="special_tokens_map.json"):
        load(folder)
    (folder / "lm" / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        load(folder)


def test_the_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = copied(tmp_path / "c")
    moved = shutil.copytree(folder / "lm", tmp_path / "elsewhere")
    (folder / "lm" / "tokenizer.json").unlink()
    (folder / "lm" / "vocab.json").unlink()
    places = (folder / name for name in ("model", "lm", "clip"))
    tokenizer = open_flamingo_mini(*places, tokenizer=moved).tokenizer
    assert tokenizer.get_vocab() == loaded()[1].get_vocab()


SHAPE = {"vocab_size": 504, "eos_token_id": 2, "num_hidden_layers": 4, "num_attention_heads": 4}
OTHERS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "gpt2": lambda: hf.GPT2Config(n_embd=64, n_positions=128, **SHAPE),
    "opt-350m": lambda: hf.OPTConfig(
        hidden_size=64, ffn_dim=96, do_layer_norm_before=False, word_embed_proj_dim=32, **SHAPE
    ),
}


def on_another_language_model(folder: Path, theirs: hf.PreTrainedModel) -> None:
    """The language model's tensors in place of the old ones, all gates closed."""
    path = folder / "model" / "pytorch_model.bin"
    old = torch.load(path, weights_only=True)
    layers = "h" if theirs.config.model_type == "gpt2" else "decoder.layers"
    new = {k: v for k, v in old.items() if ".lm." not in k and "lm_head" not in k}
    for name, tensor in old.items():
        if ".xattn_block." in name:
            closed = tensor * ("alpha" not in name)
            new[name.replace("decoder.layers", layers)] = closed
    for name, tensor in theirs.state_dict().items():
        short = name.removeprefix("transformer.").removeprefix("model.")
        for layer in (0, 2):
            short = short.replace(f"{layers}.{layer}.", f"{layers}.{layer}.lm_block.")
        new[f"flamingo.{short}" if name == "lm_head.weight" else f"flamingo.lm.{short}"] = tensor
    torch.save(new, path)


@pytest.mark.parametrize("name", OTHERS)
def test_other_language_models_are_found_inside(tmp_path: Path, name: str) -> None:
    folder = copied(tmp_path / "c")
    torch.manual_seed(0)
    theirs: hf.PreTrainedModel = hf.AutoModelForCausalLM.from_config(OTHERS[name]()).eval()
    (folder / "lm" / "config.json").write_text(json.dumps(theirs.config.to_dict()))
    theirs.resize_token_embeddings(505)
    on_another_language_model(folder, theirs)
    model, tokenizer = load(folder)
    ids = [2, 40, 31, 50, 60]
    expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(run(model, ids, no_media), expected, rtol=1e-4, atol=1e-5)
    prompt = PromptRenderer(tokenizer, model.config.tokens).render([MediaPart(), TextPart("a")])
    assert prompt.media_index[-1] == 0
    assert prompt.token_ids[0] == (31 if name == "gpt2" else 2)  # GPT-2 gets no first token


def test_saved_as_a_native_checkpoint_it_is_the_same(tmp_path: Path) -> None:
    save_native(*loaded(), tmp_path / "native", torch.float32)
    model, tokenizer = load_native(tmp_path / "native")
    row = Row("two_shot", 0)
    again = PromptRenderer(tokenizer, model.config.tokens).render(parts(row.text))
    assert again == renderer().render(parts(row.text))
    assert torch.equal(model.encode_media(row.pixels), loaded()[0].encode_media(row.pixels))
    assert torch.equal(run(model, row.ids, no_media), run(loaded()[0], row.ids, no_media))

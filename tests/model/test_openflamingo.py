"""OpenFlamingo's checkpoints give the numbers that OpenFlamingo itself gave for them."""

from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_model.attention import no_media
from flamingo_model.checkpoints.clip import read_clip
from flamingo_model.checkpoints.lazy import real
from flamingo_model.checkpoints.openflamingo import open_openflamingo
from flamingo_model.clip import ClipTower
from flamingo_model.cross_attention import visible_media
from flamingo_model.flamingo import Flamingo
from flamingo_model.prompt import MediaPart, PromptRenderer, TextPart
from forward import Cached, Chunk, dense, look, run
from golden_sets import GOLDEN, GoldenSet, Row, model_and_tokenizer

CLIP = GOLDEN / "of_clip_vit"
SETS = {"of_opt_x1": 1, "of_mpt_x2": 2, "of_neox_x2": 2}
CASES = ["zero_shot", "zero_shot_eval", "two_shot", "four_shot", "text_before", "consecutive"]
CASES += ["text_only", "batch_mixed"]


@cache
def loaded(name: str) -> tuple[Flamingo, Tokenizer]:
    folder = GOLDEN / name
    return model_and_tokenizer(
        open_openflamingo(folder / "checkpoint.pt", folder / "lm", CLIP / "hf", SETS[name])
    )


def image_id(model: Flamingo, tokenizer: Tokenizer) -> int:
    found = tokenizer.token_to_id(model.config.tokens.image)
    assert found is not None
    return found


def logits(model: Flamingo, tokenizer: Tokenizer, row: Row) -> Tensor:
    if not len(row.pixels):
        return run(model, row.ids, no_media)
    return dense(model, row.ids, row.pixels, image_id(model, tokenizer))


def greedy(model: Flamingo, tokenizer: Tokenizer, row: Row) -> list[int]:
    """Until the end of the chunk or as far as the reference went, a token a step."""
    image, end = image_id(model, tokenizer), tokenizer.token_to_id("<|endofchunk|>")
    caches = Cached(model, length=128)
    if len(row.pixels):
        caches.show(list(range(len(row.pixels))), row.pixels)
    slots = visible_media(row.ids, image)
    (logits,) = caches.step(Chunk(0, row.ids, slots))
    new: list[int] = []
    while len(new) < len(row.new_ids):
        new.append(int(logits[-1].argmax()))
        if new[-1] == end:
            break
        place = len(row.ids) + len(new) - 1
        (logits,) = caches.step(decodes=[Chunk(0, new[-1:], slots[-1:], place)])
    return new


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SETS)
def test_logits_are_the_references(name: str, case: str) -> None:
    model, tokenizer = loaded(name)
    for row in GoldenSet(GOLDEN / name).rows(case):
        found = logits(model, tokenizer, row)
        torch.testing.assert_close(found, row.logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SETS)
def test_greedy_answers_are_the_references(name: str, case: str) -> None:
    for row in GoldenSet(GOLDEN / name).rows(case):
        assert greedy(*loaded(name), row) == row.new_ids


@pytest.mark.parametrize("name", SETS)
def test_prompts_become_the_references_tokens(name: str) -> None:
    """Special tokens in a text part are tokens; a picture is a part of its own."""
    model, tokenizer = loaded(name)
    renderer = PromptRenderer(tokenizer, model.config.tokens)
    for case in CASES:
        for row in GoldenSet(GOLDEN / name).rows(case):
            assert renderer.render(parts(row.text)).token_ids == row.ids
            assert tokenizer.decode(row.new_ids) == row.new_text


def parts(text: str) -> list[TextPart | MediaPart]:
    found: list[TextPart | MediaPart] = []
    for number, piece in enumerate(text.split("<image>")):
        found += [MediaPart()] * (number > 0) + [TextPart(piece, special_tokens=True)] * bool(piece)
    return found


@pytest.mark.parametrize("name", SETS)
def test_every_stage_on_the_way_is_the_references(name: str) -> None:
    model, tokenizer = loaded(name)
    told = GoldenSet(GOLDEN / name).arrays("intermediates_two_shot")
    pixels, ids = told["vision_x"][0], told["input_ids"][0].tolist()
    close(model.vision(pixels.flatten(0, 1)), told["vision_tokens"])
    latents = model.encode_media(pixels)
    close(latents, told["perceiver_out"][0])
    layers = [i for i in range(4) if model.config.cross_attention.has_block(i)]
    assert [f"layer{i}_xattn_out" in told for i in range(4)] == [i in layers for i in range(4)]
    attend = look(model, ids, latents, image_id(model, tokenizer))
    for index, layer in enumerate(layers):
        block = model.cross_attention[index]
        close(block(told[f"layer{layer}_in"], index, attend), told[f"layer{layer}_xattn_out"])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["hf", "open_clip"])
def test_picture_tokens_are_open_clips(form: str) -> None:
    config, weights = read_clip(CLIP / form)
    tower = ClipTower(config).eval()
    tower.load_state_dict({name: real(tensor) for name, tensor in weights.items()})
    with np.load(CLIP / "clip_golden.npz") as arrays:
        pixels, expected = map(
            torch.from_numpy, (arrays["pixel_values"], arrays["tokens_open_clip"])
        )
    found = tower(pixels).detach()
    assert found.shape[1] == config.num_tokens
    close(found, expected)

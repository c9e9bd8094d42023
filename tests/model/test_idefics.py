"""IDEFICS, as transformers loads and runs it: the numbers that it gave for a tiny checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flamingo_model.attention import DenseCrossAttention, no_media
from flamingo_model.checkpoints.idefics import open_idefics
from flamingo_model.cross_attention import MEDIA_RULES, CrossAttend, MarkIds, media_mask
from flamingo_model.flamingo import Flamingo
from flamingo_model.media import to_pixels
from flamingo_model.prompt import MediaPart, Part, TextPart, build_renderer
from forward import Cached, Chunk, run
from golden_sets import model_and_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "idefics_qkln"
META = json.loads((FOLDER / "golden" / "meta.json").read_text())
RULE = MEDIA_RULES["until_end_of_text"]
MARKS = MarkIds(frozenset({META["image_token_id"]}), end_of_text=2)
NUM_NEW = 12

MODEL, TOKENIZER = model_and_tokenizer(open_idefics(FOLDER))


@dataclass(frozen=True)
class Row:
    """One sequence of a recorded batch, its padding on the left taken off."""

    case: str
    number: int

    def __str__(self) -> str:
        return f"{self.case}-{self.number}"

    def recorded(self, name: str) -> Any:
        return np.load(FOLDER / "golden" / f"{self.case}.npz")[name][self.number]

    def unpadded(self, name: str) -> Any:
        """Of the prompt's tokens alone, or of them and what followed."""
        return self.recorded(name)[int((self.recorded("attention_mask") == 0).sum()) :]

    @property
    def ids(self) -> list[int]:
        return list(map(int, self.unpadded("input_ids")))

    @property
    def num_media(self) -> int:
        return self.ids.count(META["image_token_id"])

    @property
    def pixels(self) -> Tensor:
        """[M, 1, 3, H, W] without the batch's padding."""
        return torch.from_numpy(self.recorded("pixel_values"))[: self.num_media].unsqueeze(1)

    @property
    def parts(self) -> list[Part]:
        """The prompt; some of its texts hold a `</s>`."""
        prompt = META["cases"][self.case]["prompt"][self.number]
        return [MediaPart() if isinstance(p, dict) else TextPart(p, True) for p in prompt]


ROWS = [Row(case, i) for case, c in META["cases"].items() for i in range(len(c["prompt"]))]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)


def look(model: Flamingo, row: Row) -> CrossAttend:
    if not row.num_media:
        return no_media
    index = torch.tensor([RULE.prompt(row.ids, MARKS)])
    media = model.project_media(model.encode_media(row.pixels).unsqueeze(0))
    return DenseCrossAttention(media, media_mask(index, row.num_media))


@every_row
def test_logits_are_the_references(row: Row, record_property: Callable[..., None]) -> None:
    found, expected = run(MODEL, row.ids, look(MODEL, row)), torch.tensor(row.unpadded("logits"))
    record_property("deviation", float((found - expected).abs().max()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


@every_row
def test_greedy_answers_through_the_caches_are_the_references(row: Row) -> None:
    index, cached = RULE.prompt(row.ids, MARKS), Cached(MODEL, length=128)
    if row.num_media:
        cached.show(list(range(row.num_media)), row.pixels)
    [logits] = cached.step(Chunk(0, row.ids, index))
    ids, sees = row.ids, RULE.generated(index)
    for _ in range(NUM_NEW):
        ids.append(int(logits[-1].argmax()))
        [logits] = cached.step(decodes=[Chunk(0, ids[-1:], [sees], len(ids) - 1)])
    assert ids == row.unpadded("greedy_sequences").tolist()


@every_row
def test_which_token_sees_which_picture_is_the_processors_mask(row: Row) -> None:
    index = torch.tensor(RULE.prompt(row.ids, MARKS))
    mask = row.unpadded("image_attention_mask")
    assert media_mask(index, mask.shape[1]).tolist() == mask.astype(bool).tolist()


@pytest.mark.parametrize("case", META["cases"])
def test_the_tower_and_the_resampler_are_the_references(
    case: str, record_property: Callable[..., None]
) -> None:
    recorded = np.load(FOLDER / "golden" / f"{case}.npz")
    pixels = torch.from_numpy(recorded["pixel_values"]).flatten(0, 1)
    features = MODEL.vision(pixels)
    latents = MODEL.encode_media(pixels.unsqueeze(1))
    for found, name in ((features, "vision_last_hidden_state"), (latents, "perceiver_out")):
        expected = torch.from_numpy(recorded[name])
        record_property(name, float((found - expected).abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert features.shape[1] == MODEL.config.vision.num_tokens


@every_row
def test_prompts_are_rendered_as_the_processor_does(row: Row) -> None:
    rendered = build_renderer(TOKENIZER, MODEL.config).render(row.parts)
    assert rendered.token_ids == row.ids
    assert rendered.media_index == RULE.prompt(row.ids, MARKS)
    assert rendered.generated_media == rendered.media_index[-1]


def test_neither_token_around_a_picture_is_ever_answered() -> None:
    marker = build_renderer(TOKENIZER, MODEL.config).marker
    assert marker.never_answered == {META["image_token_id"], META["fake_token_id"]}
    assert marker.ids == {META["image_token_id"]}


def test_half_precision_reaches_the_tower_too() -> None:
    model = open_idefics(FOLDER).load(dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    features = model.vision(ROWS[0].pixels[:, 0].bfloat16())
    assert features.dtype == torch.bfloat16
    expected = MODEL.vision(ROWS[0].pixels[:, 0])
    torch.testing.assert_close(features.float(), expected, rtol=0.05, atol=0.1)


def test_pictures_become_the_recorded_pixels() -> None:
    transform = MODEL.config.vision.pixel_transform()
    for name, expected in np.load(GOLDEN / "preprocess" / "idefics.npz").items():
        picture = Image.open(GOLDEN / "preprocess" / "images" / f"{name}.png")
        found = transform.normalise(to_pixels(picture, transform))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

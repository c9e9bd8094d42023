"""The engine with the recorded IDEFICS: pictures and text in, the reference's greedy answer out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import Answer, drive, submit
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.media import media_digest, to_pixels
from flamingo_model.prompt import MediaPart, TextPart, build_renderer
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from golden_sets import model_and_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "idefics_qkln"
CASES = json.loads((FOLDER / "golden" / "meta.json").read_text())["cases"]
MODEL, TOKENIZER = model_and_tokenizer(open_checkpoint(FOLDER))


def media(name: str) -> Media:
    transform = MODEL.config.vision.pixel_transform()
    picture = Image.open(GOLDEN / "preprocess" / "images" / f"{name}.png")
    pixels = to_pixels(picture, transform)[None]
    return Media(pixels, media_digest(pixels, transform))


def ask(engine: Engine, parts: list[str | dict[str, str]], generated: int | None = None) -> Answer:
    rendered = build_renderer(TOKENIZER, MODEL.config).render(
        [TextPart(part, True) if isinstance(part, str) else MediaPart() for part in parts]
    )
    sees = rendered.generated_media if generated is None else generated
    pictures = [media(part["image"]) for part in parts if isinstance(part, dict)]
    prompt = Prompt(rendered.token_ids, rendered.media_index, pictures, sees)
    return submit(engine, prompt, Sampling(max_tokens=12))


@pytest.fixture
def engine() -> Engine:
    sizes = EngineLimits(max_running=16, max_length=128)
    return Engine(MODEL.config, Runner(MODEL, sizes), TOKENIZER, sizes)


def test_all_cases_in_one_batch_give_the_recorded_tokens(engine: Engine) -> None:
    rows = [(c, i, p) for c in CASES for i, p in enumerate(CASES[c]["prompt"])]
    answers = [ask(engine, parts) for _, _, parts in rows]
    drive(engine)
    for (case, i, _), answer in zip(rows, answers, strict=True):
        expected = np.load(FOLDER / "golden" / f"{case}.npz")["greedy_sequences"][i, -12:]
        assert answer.token_ids() == expected.tolist(), case


def test_an_answer_that_may_not_look_is_another(engine: Engine) -> None:
    """What OpenFlamingo 1's rule asks of the engine."""
    parts = CASES["zero_shot"]["prompt"][0]
    seeing, blind = ask(engine, parts), ask(engine, parts, -1)
    drive(engine)
    assert seeing.token_ids()[0] == blind.token_ids()[0]  # the first comes from the prompt
    assert seeing.token_ids() != blind.token_ids()

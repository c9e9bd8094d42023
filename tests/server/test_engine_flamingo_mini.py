"""The engine answers as flamingo-mini did: pictures, a prompt whose marker is text, tokens."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from fakes import Answer, drive, submit
from flamingo_model.checkpoints.flamingo_mini import load_flamingo_mini
from flamingo_model.flamingo import Flamingo
from flamingo_model.media import to_pixels
from flamingo_model.prompt import MediaPart, Part, PromptRenderer, TextPart
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from golden_sets import GOLDEN, GoldenSet

SET = GoldenSet(GOLDEN / "fm_opt")
CASES = [*SET.meta["cases"]]


@cache
def loaded() -> tuple[Flamingo, Tokenizer]:
    return load_flamingo_mini(*(SET.folder / name for name in ("model", "lm", "clip")))


def new_engine() -> Engine:
    model, tokenizer = loaded()
    limits = EngineLimits(max_running=8, max_length=96)
    runner = Runner(model, limits)
    return Engine(model.config, runner, tokenizer, limits)


def picture(name: str) -> Media:
    transform = loaded()[0].config.vision.pixel_transform()
    with Image.open(GOLDEN / "preprocess" / "images" / f"{name}.png") as opened:
        return Media(np.asarray(to_pixels(opened, transform))[None], name)


def parts(text: str) -> list[Part]:
    found: list[Part] = []
    for number, piece in enumerate(text.split("<image>")):
        found += [MediaPart()] * (number > 0) + [TextPart(piece, special_tokens=True)] * bool(piece)
    return found


def ask(engine: Engine, text: str, names: list[str]) -> Answer:
    model, tokenizer = loaded()
    rendered = PromptRenderer(tokenizer, model.config.tokens).render(parts(text))
    prompt = Prompt(rendered.token_ids, rendered.media_index, list(map(picture, names)))
    return submit(engine, prompt, Sampling(max_tokens=12))


def test_all_cases_at_once_get_the_references_tokens() -> None:
    engine, told = new_engine(), SET.meta["cases"]
    asked = [
        (ask(engine, text, names), expected)
        for case in CASES
        for text, names, expected in zip(
            told[case]["texts"],
            told[case]["images"],
            told[case]["greedy_new_tokens"],
            strict=True,
        )
    ]
    drive(engine)
    assert [answer.token_ids() for answer, _ in asked] == [expected for _, expected in asked]


def test_an_answer_may_say_the_letter_that_marks_pictures_in_prompts() -> None:
    engine = new_engine()
    assert not set(engine.banned) & set(SET.meta["leq_ids"])

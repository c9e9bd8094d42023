"""A flamingo-mini folder as published, over HTTP: a picture file in, the reference's tokens out."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from e2e.calls import ask, image, text
from golden_sets import GOLDEN, GoldenSet

FOLDER = GOLDEN / "fm_opt"
PICTURES = GOLDEN / "preprocess" / "images"


@pytest.mark.parametrize(
    "case", ["image_only", "caption", "two_shot", "text_before", "consecutive"]
)
def test_greedy_answers_and_beams_are_the_references(serve: Any, case: str) -> None:
    told = GoldenSet(FOLDER).meta["cases"][case]
    first, *rest = told["texts"][0].split("<image>")
    parts = [text(first)] if first else []
    for name, piece in zip(told["images"][0], rest, strict=True):
        parts.append(image((PICTURES / f"{name}.png").read_bytes()))
        parts += [text(piece, special_tokens=True)] if piece else []
    folders = {"model": FOLDER / "model", "lm": str(FOLDER / "lm"), "vision": str(FOLDER / "clip")}
    with serve(family="flamingo-mini", **folders) as url, httpx.Client(base_url=url) as client:
        answer = ask(client, *parts, max_tokens=12)
        assert answer["choices"][0]["token_ids"] == told["greedy_new_tokens"][0]
        beams = {"num_beams": 3, "n": 3, "early_stopping": True, "score_rule": "total"}
        found = ask(client, *parts, **beams, max_tokens=12)["choices"]
    for choice, tokens, score in zip(
        found, told["beam3_new_tokens"], told["beam3_scores"], strict=True
    ):
        assert tokens[: len(choice["token_ids"])] == choice["token_ids"]
        assert choice["score"] == pytest.approx(score, abs=1e-3)

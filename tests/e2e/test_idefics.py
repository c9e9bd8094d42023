"""A published layout, served: the reference's tokens come back over HTTP."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import httpx
import pytest

from serving import serve

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "idefics_qkln"


def test_a_served_idefics_gives_the_recorded_answer() -> None:
    case = json.loads((FOLDER / "golden" / "meta.json").read_text())["cases"]["consecutive"]
    parts = [
        {"type": "image", "image": {"data": picture(part["image"])}}
        if isinstance(part, dict)
        else {"type": "text", "text": part}
        for part in case["prompt"][0]
    ]
    with serve(FOLDER, threads=1, media_workers=1) as url:
        asked = {"prompt": parts, "max_tokens": 12, "temperature": 0, "logprobs": 0}
        answer = httpx.post(f"{url}/v1/generate", json=asked, timeout=60).raise_for_status().json()
        asked = {"prompt": parts, "max_tokens": 12, "num_beams": 3, "n": 3}
        beams = httpx.post(f"{url}/v1/generate", json=asked, timeout=60).raise_for_status().json()
    assert answer["usage"]["prompt_tokens"] == case["prompt_len"]
    assert answer["model"] == FOLDER.name
    found = [token["token_id"] for token in answer["choices"][0]["logprobs"]]
    assert found == case["greedy_new_tokens"][0]
    for number, choice in enumerate(beams["choices"]):
        assert choice["token_ids"] == case["beam3_new_tokens"][number]
        assert choice["score"] == pytest.approx(case["beam3_scores"][number], abs=1e-3)


def picture(name: str) -> str:
    data = (GOLDEN / "preprocess" / "images" / f"{name}.png").read_bytes()
    return base64.b64encode(data).decode()

"""The shipped checkpoint through HTTP: what the README says it can do, it does.

The bars are the project's; 200 prompts each, all emoji, words and scenes held out of training.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from exam import DATA, Score, examine, is_right, questions
from flamingo_client import FlamingoClient, Token, image, text
from serving import serve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve() as url:
        yield url


@pytest.fixture(scope="module")
def seeing(server: str) -> dict[str, Score]:
    return examine(server)


@pytest.fixture(scope="module")
def blinded(server: str) -> dict[str, Score]:
    return examine(server, blinded=True)


def test_it_names_background_colours(seeing: dict[str, Score]) -> None:
    assert seeing["colour"].asked == 200
    assert seeing["colour"].share >= 0.90


def test_it_counts(seeing: dict[str, Score]) -> None:
    assert seeing["count"].share >= 0.85


def test_it_learns_two_made_up_words_from_one_example_each(seeing: dict[str, Score]) -> None:
    assert seeing["words"].share >= 0.85


def test_without_its_eyes_it_cannot(blinded: dict[str, Score]) -> None:
    assert blinded["colour"].share <= 0.35
    assert blinded["count"].share <= 0.35
    assert 0.42 <= blinded["words"].share <= 0.58


def test_the_readme_example_streams_the_right_word(server: str) -> None:
    body = json.loads((ROOT / "clients" / "examples" / "made_up_words.json").read_text())
    answer = httpx.post(f"{server}/v1/generate", json=body, timeout=60)
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    said = "".join(json.loads(d).get("text", "") for d in data)
    with zipfile.ZipFile(DATA) as archive:
        prompts = json.loads(archive.read("prompts.json"))
    asked = [p["text"] for p in body["prompt"] if p["type"] == "text"]
    (same,) = [p for p in prompts if [q["text"] for q in p["parts"] if "text" in q] == asked]
    assert is_right(said, same["answer"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_any_size_and_format_is_understood(server: str, kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), (45, 90, 210)).resize((480, 480)).save(file, kind)
    parts = [image(file.getvalue()), text("Question: What color is the background? Answer:")]
    with FlamingoClient(base_url=server) as client:
        assert client.generate(parts, max_tokens=4).choices[0].text.strip() == "blue"


def test_answers_are_the_same_alone_and_beside_fifteen_others(server: str) -> None:
    asked = list(questions())[::38][:16]
    with FlamingoClient(base_url=server) as client:

        def ask(parts: list) -> list[int]:
            return (
                client.generate(parts, max_tokens=12, temperature=0.8, seed=7).choices[0].token_ids
            )

        alone = [ask(question.parts) for question in asked]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, [question.parts for question in asked]))
    assert together == alone


def test_streamed_and_whole_answers_are_the_same(server: str) -> None:
    with FlamingoClient(base_url=server) as client:
        for question in list(questions())[::60]:
            whole = client.generate(question.parts, max_tokens=12).choices[0]
            tokens = [
                e for e in client.stream(question.parts, max_tokens=12) if isinstance(e, Token)
            ]
            assert "".join(t.text for t in tokens) == whole.text
            assert [id for t in tokens for id in t.token_ids] == list(whole.token_ids)

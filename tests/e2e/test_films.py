"""Films over HTTP, to the shipped checkpoint: one media of several frames."""

import base64
import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from e2e.calls import ask, image, text, video
from e2e.conftest import Serve
from films import animation, film
from flamingo_client import FlamingoClient, example
from flamingo_client import image as picture_part
from flamingo_client import video as film_part

QUESTION = text("Question: What color is the background? Answer:")
BLUE = (45, 90, 210)


@pytest.fixture(scope="module")
def emoji(serve: Serve) -> Iterator[httpx.Client]:
    with serve("embedded", max_film_seconds=20.0) as url:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            yield client


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), BLUE).save(file, "PNG")
    return file.getvalue()


def test_a_film_is_one_media_and_is_answered(emoji: httpx.Client) -> None:
    answer = ask(emoji, video(film(num_frames=30, rate=10)), QUESTION, max_tokens=4)
    assert answer["usage"]["media"] == 1 and answer["usage"]["completion_tokens"] >= 1


def test_a_blue_film_is_blue(emoji: httpx.Client) -> None:
    blue = np.full((64, 64, 3), BLUE, dtype=np.uint8)
    clip = video(film(num_frames=3, rate=1, size=(64, 64), scene=lambda at: blue), max_frames=1)
    for part in (clip, image(picture())):
        answer = ask(emoji, part, QUESTION, max_tokens=4)
        assert answer["choices"][0]["text"].strip() == "blue"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_an_animation_is_a_film(emoji: httpx.Client, kind: str) -> None:
    part = video(animation(kind, [100] * 12), fps=10, max_frames=12)
    answer = ask(emoji, part, image(picture()), QUESTION, max_tokens=4)
    assert answer["usage"]["media"] == 2


def test_a_still_gif_is_a_film_of_one_frame(emoji: httpx.Client) -> None:
    assert ask(emoji, video(animation("GIF", [100])), QUESTION, max_tokens=1)["usage"]["media"] == 1


def test_the_same_frames_are_encoded_once_and_others_anew(emoji: httpx.Client) -> None:
    data = animation("GIF", [100, 170, 130])
    for fps, cached in ((10.0, 0), (10.0, 1), (3.0, 0)):
        usage = ask(emoji, video(data, fps=fps), QUESTION, max_tokens=1)["usage"]
        assert usage["cached_media"] == cached


def test_a_film_longer_than_the_limit_is_refused(emoji: httpx.Client) -> None:
    body = {"prompt": [video(film(num_frames=30, rate=1)), QUESTION]}
    response = emoji.post("/v1/generate", json=body)
    assert response.status_code == 413
    error = response.json()["error"]
    assert "the limit is 20 s" in error["message"] and error["param"] == "prompt[0].video"


def test_a_film_may_be_an_example(emoji: httpx.Client) -> None:
    gif = {"data": base64.b64encode(animation("GIF")).decode()}
    body = {
        "task": "vqa",
        "examples": [{"video": gif, "fps": 2.0, "question": "Background?", "answer": "grey"}],
        "query": {"image": image(picture())["image"], "question": "Background?"},
    }
    answer = emoji.post("/v1/generate", json={**body, "max_tokens": 4}).json()
    assert answer["usage"]["media"] == 2
    parts = emoji.post("/v1/render", json=body).json()["parts"]
    assert [part["text"] for part in parts if part["type"] == "text"] == [
        "Question: Background? Answer: grey",
        "<|endofchunk|>",
        "Question: Background? Answer:",
    ]


def test_the_shipped_checkpoint_answers_the_structured_form(emoji: httpx.Client) -> None:
    query = {
        "image": image(picture())["image"],
        "question": "What color is the background?",
    }
    body = {"task": "vqa", "query": query, "max_tokens": 4}
    answer = emoji.post("/v1/generate", json=body).json()["choices"][0]
    assert answer == ask(emoji, image(picture()), QUESTION, max_tokens=4)["choices"][0]
    assert answer["text"].strip() == "blue"


def test_the_client_sends_tasks_and_films(emoji: httpx.Client) -> None:
    asked = {"question": "What color is the background?"}
    still = film_part(animation("GIF", [100]), fps=2.0, max_frames=2)
    with FlamingoClient(str(emoji.base_url)) as client:
        answer = client.generate(
            task="vqa",
            examples=[example(still, **asked, answer="black")],
            query=example(picture_part(picture()), **asked),
            max_tokens=4,
        )
    assert answer.text.strip() == "blue" and answer.usage.media == 2

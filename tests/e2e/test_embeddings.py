"""Embeddings over HTTP: the frozen tower's own features, however they are asked for."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from e2e.calls import ask, image, png, text, video
from films import GREY, animation
from flamingo_client import FlamingoClient
from flamingo_client import image as picture_part
from flamingo_client import video as film_part
from flamingo_model.media import to_pixels
from tiny import tiny_model

Vectors = NDArray[np.float32]
REMOTE = {"url": "https://example.org/a.png"}
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")


def item(colour: str) -> dict[str, Any]:
    return {"image": image(png(colour))["image"]}


def film(**fields: Any) -> dict[str, Any]:
    return {"video": video(animation("GIF", [100, 100, 100]))["video"], "fps": 10.0, **fields}


def post(client: httpx.Client, *items: Any, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/embeddings", json={"input": list(items), **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def vectors(answer: dict[str, Any]) -> Vectors:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], dtype=np.float32)


def by_hand(*frames: Image.Image) -> Vectors:
    """One frame, or film, through the tower alone."""
    model = tiny_model()
    transform = model.config.vision.pixel_transform()
    pixels = np.stack([to_pixels(frame, transform) for frame in frames])
    with torch.inference_mode():
        tokens = model.vision(torch.from_numpy(transform.normalise(pixels)))
    mean: Vectors = tokens.mean((0, 1)).numpy()
    return mean / np.linalg.norm(mean)


def test_a_picture_lies_where_the_tower_sees_it(client: httpx.Client) -> None:
    answer = post(client, *map(item, COLOURS))
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    assert {one["object"] for one in answer["data"]} == {"embedding"}
    found = vectors(answer)
    for colour, vector in zip(COLOURS, found, strict=True):
        assert np.allclose(vector, by_hand(Image.new("RGB", (8, 8), colour)), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert len(np.unique(found.round(4), axis=0)) == len(COLOURS)


def test_a_film_is_the_mean_of_its_frames(client: httpx.Client) -> None:
    (found,) = vectors(post(client, film(max_frames=3)))
    frames = [Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in GREY[:3]]
    assert np.allclose(found, by_hand(*frames), atol=1e-5)
    assert not np.allclose(found, by_hand(frames[0]), atol=1e-4)


def test_asked_again_beside_others_they_are_the_same_and_not_computed_anew(
    client: httpx.Client,
) -> None:
    items = [item(f"#{number:02x}3080") for number in range(0, 160, 8)]
    with ThreadPoolExecutor(8) as pool:
        alone = [vectors(one)[0] for one in pool.map(lambda one: post(client, one), items)]
    again = post(client, *items)
    assert again["usage"]["cached_media"] == again["usage"]["media"] == len(items)
    assert np.array_equal(vectors(again), np.array(alone))


def test_base64_holds_the_same_numbers(client: httpx.Client) -> None:
    numbers, written = (
        post(client, item("red")),
        post(client, item("red"), encoding_format="base64"),
    )
    data = base64.b64decode(written["data"][0]["embedding"])
    assert np.array_equal(np.frombuffer(data, "<f4"), vectors(numbers)[0])


def test_the_client_reads_them(url: str, client: httpx.Client) -> None:
    with FlamingoClient(url) as ours:
        still = film_part(animation("GIF", [100]), max_frames=1)
        found = ours.embeddings([picture_part(png("red")), still])
    assert np.allclose(found.vectors[0], vectors(post(client, item("red")))[0])
    assert found.usage.media == 2 and found.model == "tiny"


def test_a_part_of_a_prompt_and_a_lone_item_are_read_too(client: httpx.Client) -> None:
    lone = client.post("/v1/embeddings", json={"input": item("red"), "user": "me"}).json()
    part = post(client, image(png("red")), model="tiny", dimensions=None)
    assert np.array_equal(vectors(lone), vectors(part))


def test_they_are_made_while_answers_are(client: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client, text("a long answer"), max_tokens=60) for _ in range(4)]
        found = list(pool.map(lambda n: post(client, item(f"#1020{n:02x}")), range(20)))
        assert all(one.result()["choices"][0]["token_ids"] for one in asked)
    assert len(np.unique(np.array([vectors(one)[0] for one in found]).round(5), axis=0)) > 1


@pytest.mark.parametrize(
    ("status", "param", "code", "body"),
    [
        (400, "input[0]", "no_text_tower", {"input": "a cat"}),
        (400, "input[1]", "no_text_tower", {"input": [item("red"), "a cat"]}),
        (400, "input[0]", "no_text_tower", {"input": [{"type": "text", "text": "a cat"}]}),
        (400, "input[0]", "no_text_tower", {"input": [1, 2]}),
        (400, "dimensions", "not_supported", {"input": [item("red")], "dimensions": 8}),
        (400, "input[0]", "value_error", {"input": [{}]}),
        (400, "input[0]", "value_error", {"input": [{**item("red"), "fps": 2.0}]}),
        (400, "input[0]", "value_error", {"input": [{**item("red"), "type": "video"}]}),
        (400, "input", "missing", {}),
        (400, "encoding_format", "literal_error", {"input": [item("red")], "encoding_format": "x"}),
        (400, "extra", "unknown_field", {"input": [item("red")], "extra": 1}),
        (
            403,
            "input[0].image",
            "remote_media_forbidden",
            {"input": [{"image": {"url": "https://a"}}]},
        ),
        (404, "model", "unknown_model", {"input": [item("red")], "model": "other"}),
        (404, "input[0].image", "unknown_media_id", {"input": [{"image": {"id": "x"}}]}),
        (413, "input", "too_many_media", {"input": [item("red")] * 65}),
        (413, "input", "too_many_frames", {"input": [film(max_frames=60)] * 5}),
        (415, "input[0].image", None, {"input": [{"image": {"data": "aGVsbG8gd29ybGQ="}}]}),
        (422, "input", "too_short", {"input": []}),
    ],
)
def test_what_is_wrong_is_named(
    client: httpx.Client, status: int, param: str, code: str | None, body: dict[str, Any]
) -> None:
    response = client.post("/v1/embeddings", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert code is None or error["code"] == code


def test_a_full_queue_refuses_them(serve: Any) -> None:
    running = {"prompt": [text("a")], "max_tokens": 200, "min_tokens": 200, "stream": True}
    asked = {"input": [item("red")]}
    with serve(max_queued=1) as url, httpx.Client(base_url=url, timeout=30) as one:
        with one.stream("POST", "/v1/generate", json=running) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert one.post("/v1/embeddings", json=asked).status_code == 429
            list(lines)
        assert one.post("/v1/embeddings", json=asked).status_code == 200

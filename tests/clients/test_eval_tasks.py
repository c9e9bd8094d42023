"""The published benchmarks, read from tiny files in their exact formats."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from clients.eval_files import MAKERS, coco, hateful_memes, imagenet, nextqa, shown, vqav2
from flamingo_client import AsyncFlamingoClient
from flamingo_eval.asking import Asker, Style
from flamingo_eval.benchmark import Choice, Row, run_task
from flamingo_eval.examples import CAPTION, Data, Plan
from flamingo_eval.published import PUBLISHED, SHOTS, figure
from flamingo_eval.tasks import GROUPS, TASKS, chosen
from flamingo_eval.tasks import PUBLISHED as PUBLISHED_TASKS
from flamingo_eval.tasks.base import FewShot, MissingFiles
from test_rooms import ROOMS

FAMILY = Style()


class Says:
    """Writes one text, ranks candidates as given or by `better`, and keeps the requests."""

    def __init__(self, text: str, better: Sequence[str] = ()) -> None:
        self.text, self.better = text, better
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/v1/embeddings":
            return httpx.Response(200, json=self.embeddings(len(body["input"])))
        self.bodies.append(body)
        if "candidates" not in body:
            choice = {"index": 0, "text": self.text, "token_ids": [], "finish_reason": "stop"}
            return httpx.Response(200, json={"id": "g", "model": "m", "choices": [choice]})
        texts = sorted(body["candidates"], key=lambda text: text not in self.better)
        found = [
            {"index": body["candidates"].index(text), "text": text, "score": -1.0 - place}
            for place, text in enumerate(texts)
        ]
        return httpx.Response(200, json={"id": "c", "model": "m", "candidates": found})

    def embeddings(self, num: int) -> dict[str, Any]:
        raise AssertionError(f"nobody asked for {num} embeddings")


def run(name: str, data: Path, server: Says, style: Style = FAMILY, **choice: Any) -> list[Row]:
    async def evaluate() -> list[Row]:
        transport = httpx.MockTransport(server)
        async with AsyncFlamingoClient(transport=transport, max_retries=0) as client:
            options = Choice(data, **{"shots": (2,), "trials": 1, **choice})
            asker = Asker(client, 2, style)
            return (await run_task(TASKS[name], options, asker, lambda bar, n: lambda: None)).rows

    return asyncio.run(evaluate())


def test_every_published_task_has_its_files_made_here() -> None:
    assert set(MAKERS) == {task.name for task in PUBLISHED_TASKS}


@pytest.mark.parametrize("name", MAKERS)
def test_a_task_reads_its_usual_files_and_draws_its_shots_from_train(
    name: str, tmp_path: Path
) -> None:
    MAKERS[name](tmp_path)
    source = TASKS[name].load(tmp_path)
    assert isinstance(source, FewShot)
    data = source.data
    assert len(data.support) >= 4 and len(data.queries) >= 4
    for example in (*data.support, *data.queries):
        assert example.media.read() and example.references and example.answer in example.references
    shared = {e.media.key for e in data.support} & {e.media.key for e in data.queries}
    assert not shared or name in ("msvdqa", "nextqa")  # here the same made-up films


@pytest.mark.parametrize("name", MAKERS)
def test_a_task_without_its_files_names_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingFiles) as caught:
        TASKS[name].load(tmp_path)
    MAKERS[name](tmp_path)
    assert caught.value.missing and all(path.exists() for path in caught.value.missing)
    TASKS[name].load(tmp_path)
    (gone, *_) = [path for path in caught.value.missing if path.is_file()]
    gone.unlink()
    with pytest.raises(MissingFiles, match=gone.name):
        TASKS[name].load(tmp_path)


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "vizwiz", "textvqa", "msvdqa", "nextqa"])
def test_a_right_answer_to_a_question_counts_fully(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    server = Says(" cat, I think")
    (row,) = run(name, tmp_path, server)
    assert (row.value, row.num) == (1.0, 5)
    task = TASKS[name]
    for body in server.bodies:
        assert (body["task"], body["max_tokens"]) == ("vqa", task.max_tokens)
        assert (body["num_beams"], body["length_penalty"]) == (3, 0.0)
        assert len(body["examples"]) == 2 and body["examples"][0]["answer"] == "cat"


def test_captions_are_marked_by_cider(tmp_path: Path) -> None:
    coco(tmp_path)
    (right,) = run("coco", tmp_path, Says("a cat number 2 on a mat 3."))
    (wrong,) = run("coco", tmp_path, Says("the dog"))
    assert 0 == wrong.value < right.value and right.scale == 100 and right.num == 4


def test_nextqa_takes_its_second_answer_too(tmp_path: Path) -> None:
    nextqa(tmp_path)
    (row,) = run("nextqa", tmp_path, Says("A kitten."))
    assert row.value == 0.8


def test_memes_are_ranked_by_how_much_likelier_yes_is(tmp_path: Path) -> None:
    hateful_memes(tmp_path)
    (row,) = run("hateful_memes", tmp_path, Says("", better=["yes"]))
    assert row.value == 0.5 and row.metric == "ROC-AUC"  # all the same
    body = request_of("hateful_memes", tmp_path)
    assert body["query"]["text"] == "its {fun}" and body["examples"][0]["label"] in ("yes", "no")


def request_of(name: str, data: Path, **style: Any) -> dict[str, Any]:
    server = Says("x")
    run(name, data, server, Style(**style))
    return server.bodies[0]


def test_imagenet_asks_for_one_of_its_names_and_averages_orders(tmp_path: Path) -> None:
    imagenet(tmp_path)
    server = Says("", better=["tench"])
    (row,) = run("imagenet", tmp_path, server, Style(ensemble=6), shots=(4,))
    assert row.value == 0.5 and row.interval[0] < 0.5 < row.interval[1]
    for body in server.bodies:
        assert (body["candidates"], body["ensemble"]) == (["tench", "goldfish"], 6)
    server.bodies.clear()
    run("imagenet", tmp_path, server, Style(ensemble=6), shots=(2,))
    assert {body["ensemble"] for body in server.bodies} == {2}  # two shots have two orders


def test_beams_and_tokens_may_be_chosen(tmp_path: Path) -> None:
    coco(tmp_path)
    body = request_of("coco", tmp_path, num_beams=1, max_tokens=7, wording="paper")
    assert body["max_tokens"] == 7 and "num_beams" not in body
    assert "task" not in body and shown(body["prompt"]).endswith("<image> Output:")


# Zero shots, selection, wording


def test_zero_shots_are_two_in_words_alone(tmp_path: Path) -> None:
    coco(tmp_path)
    vqav2(tmp_path)
    imagenet(tmp_path)
    for name, field in (("coco", "caption"), ("vqav2", "answer")):
        server = Says("x")
        run(name, tmp_path, server, shots=(0,))
        for body in server.bodies:
            assert body["zero_shot"] is True and len(body["examples"]) == 2
            assert all("image" not in shot and shot[field] for shot in body["examples"])
    assert server.bodies and "a cat number" not in json.dumps(server.bodies)
    server = Says("x")
    run("imagenet", tmp_path, server, shots=(0,))
    assert all("examples" not in body and "zero_shot" not in body for body in server.bodies)


def test_the_papers_two_captions_are_the_zero_shots(tmp_path: Path) -> None:
    coco(tmp_path)
    server = Says("x")
    run("coco", tmp_path, server, shots=(0,))
    said = [shot["caption"] for shot in server.bodies[0]["examples"]]
    assert said == ["This is a cat wearing sunglasses.", "Three elephants walking in the savanna."]


def red(source: dict[str, str]) -> int:
    """Which is a picture's number."""
    with Image.open(io.BytesIO(base64.b64decode(source["data"]))) as opened:
        return int(np.asarray(opened)[0, 0, 0])


class Sees(Says):
    """Embeds a picture as its colour."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/embeddings":
            data = []
            for item in json.loads(request.content)["input"]:
                angle = red(item["image"]) / 8
                vector = np.array([np.cos(angle), np.sin(angle)], dtype="<f4").tobytes()
                data.append({"embedding": base64.b64encode(vector).decode()})
            return httpx.Response(200, json={"model": "m", "data": data, "usage": {}})
        return super().__call__(request)


def test_rices_puts_the_most_similar_last(tmp_path: Path) -> None:
    """The queries are 0, 2, 4 and 6; the pool is 1, 3, 5 and 7."""
    coco(tmp_path)
    server = Sees("x")
    run("coco", tmp_path, server, select="rices", shots=(3,))
    for body in server.bodies:
        query = red(body["query"]["image"])
        far = [abs(red(one["image"]) - query) for one in body["examples"]]
        assert far == sorted(far, reverse=True) and far[-1] == 1 and len(set(far)) > 1
    assert len(server.bodies) == 4


def test_a_pool_bounds_what_shots_are_drawn_from(tmp_path: Path) -> None:
    coco(tmp_path)
    server = Says("x")
    run("coco", tmp_path, server, pool=3, shots=(2,), trials=1)
    shown = {shot["caption"] for body in server.bodies for shot in body["examples"]}
    assert len(shown) <= 3
    assert run("coco", tmp_path, server, shots=(4,)) == []  # no query has four others


def test_queries_and_shots_repeat_with_the_seed(tmp_path: Path) -> None:
    coco(tmp_path)
    source = TASKS["coco"].load(tmp_path)
    asker = Asker(AsyncFlamingoClient(), 1, Style())

    def keys(seed: int, num: int = 4) -> list[Any]:
        questions = asyncio.run(source.questions(Plan(2, "random", seed, num, 0), asker))
        return [(q.query.media.key, [s.media.key for s in q.shots]) for q in questions]

    assert keys(3) == keys(3) != keys(4) and len(keys(3, num=2)) == 2
    assert source.questions and FewShot(Data([], []), CAPTION)


# Names and published figures


def test_groups_and_tasks_are_chosen_once_and_unknown_ones_named() -> None:
    names = [task.name for task in chosen(["emoji", "coco", "emoji-name", "published"])]
    assert len(names) == len(set(names)) == len(GROUPS["all"])
    with pytest.raises(ValueError, match="no task 'cocoa'; known are: emoji, published, all"):
        chosen(["cocoa"])


def test_published_figures_are_of_tasks_we_have_and_of_known_shots() -> None:
    assert PUBLISHED.keys() <= TASKS.keys()
    for models in PUBLISHED.values():
        for figures in models.values():
            assert 0 < len(figures) <= len(SHOTS) and all(0 < value < 150 for value in figures)
    assert figure("coco", "Flamingo-80B", 32) == 113.8
    assert figure("coco", "Flamingo-80B", 5) is figure("emoji-name", "x", 0) is None


def test_the_benchmarks_room_is_the_clients() -> None:
    assert ROOMS["flamingo_eval"].parent == ROOMS["flamingo_client"].parent

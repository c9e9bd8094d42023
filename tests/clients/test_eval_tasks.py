"""The published benchmarks, read from tiny files in their exact formats."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from flamingo_client import AsyncFlamingoClient
from flamingo_eval.asking import Asker, Style
from flamingo_eval.benchmark import Choice, Row, run_task
from flamingo_eval.examples import CAPTION, CLASSIFY, MEMES, VQA, Data, Example, Media, Plan
from flamingo_eval.prompts import candidates, request, trimmed
from flamingo_eval.published import PUBLISHED, SHOTS, figure
from flamingo_eval.tasks import GROUPS, TASKS, chosen
from flamingo_eval.tasks import PUBLISHED as PUBLISHED_TASKS
from flamingo_eval.tasks.base import FewShot, MissingFiles
from test_rooms import ROOMS

SYNSETS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
MEMES_LINE = {"id": 1, "img": "img/1.png", "label": 1, "text": "its {fun}"}


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(path)
    return path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def karpathy(folder: Path, name: str, place: str, num: int = 8) -> None:
    """Half of it is of split train."""
    rows = []
    for n in range(num):
        split = "train" if n % 2 else "test"
        picture(folder / place.format("train2014" if n % 2 else "val2014") / f"{n}.png", n)
        said = [{"raw": f" a cat number {n} on a mat {k}. "} for k in range(5)]
        row = {"filename": f"{n}.png", "split": split, "sentences": said}
        rows.append(
            row | ({"filepath": "train2014" if n % 2 else "val2014"} if "{}" in place else {})
        )
    write(folder / name, {"images": rows, "dataset": "x"})


def coco(data: Path) -> None:
    karpathy(data / "coco", "dataset_coco.json", "{}")


def flickr30k(data: Path) -> None:
    karpathy(data / "flickr30k", "dataset_flickr30k.json", "flickr30k-images")


def asked_and_answered(data: Path, task: str, asked: str, answered: str) -> None:
    for split in ("train2014", "val2014"):
        questions, annotations = [], []
        for n in range(5):
            picture(data / "coco" / split / f"COCO_{split}_{n:012d}.jpg", n)
            id = n * 1000 + 1
            questions.append({"image_id": n, "question": f"What is {n}?", "question_id": id})
            said = [{"answer": "cat" if k < 7 else "dog", "answer_id": k} for k in range(10)]
            annotations.append({"question_id": id, "image_id": n, "answers": said})
        write(data / task / asked.format(split), {"questions": questions[::-1]})
        write(data / task / answered.format(split), {"annotations": annotations})


def vqav2(data: Path) -> None:
    names = ("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json")
    asked_and_answered(data, "vqav2", *names)


def okvqa(data: Path) -> None:
    asked_and_answered(
        data, "okvqa", "OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"
    )


def vizwiz(data: Path) -> None:
    for split in ("train", "val"):
        rows = []
        for n in range(5):
            picture(data / "vizwiz" / split / f"VizWiz_{split}_{n:08d}.jpg", n)
            said = [{"answer": "cat", "answer_confidence": "yes"} for _ in range(10)]
            file = f"VizWiz_{split}_{n:08d}.jpg"
            rows.append({"image": file, "question": "What?", "answers": said, "answerable": 1})
        write(data / "vizwiz" / f"{split}.json", rows)


def textvqa(data: Path) -> None:
    for split in ("train", "val"):
        rows = []
        for n in range(5):
            picture(data / "textvqa" / "train_images" / f"{split}{n}.jpg", n)
            row = {"question_id": n, "question": "What?", "image_id": f"{split}{n}"}
            rows.append(row | {"answers": ["cat"] * 10})
        content = {"dataset_type": split, "data": rows}
        write(data / "textvqa" / f"TextVQA_0.5.1_{split}.json", content)


def hateful_memes(data: Path) -> None:
    for name in ("train", "dev_seen"):
        lines = []
        for n in range(6):
            picture(data / "hateful_memes" / "img" / f"{name}{n}.png", n)
            row = {**MEMES_LINE, "id": n, "img": f"img/{name}{n}.png", "label": n % 2}
            lines.append(json.dumps(row))
        write(data / "hateful_memes" / f"{name}.jsonl", "\n".join(lines) + "\n")


def imagenet(data: Path) -> None:
    write(data / "imagenet" / "LOC_synset_mapping.txt", SYNSETS)
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            for n in range(3):
                file = picture(data / "imagenet" / split / wnid / f"{wnid}_{n}.png", n)
                file.rename(file.with_suffix(".JPEG"))


def film(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0\0\0\x18ftypmp42")


def msvdqa(data: Path) -> None:
    root = data / "msvd_qa"
    write(root / "youtube_mapping.txt", "".join(f"clip_{n} vid{n}\n" for n in range(5)))
    for split in ("train", "test"):
        rows = []
        for n in range(5):
            film(root / "videos" / f"clip_{n}.mp4")
            rows.append({"answer": "cat", "id": n, "question": "what runs?", "video_id": n})
        write(root / f"{split}_qa.json", rows)


def nextqa(data: Path) -> None:
    root = data / "nextqa"
    write(root / "map_vid_vidorID.json", {str(n): f"1164/{n}" for n in range(5)})
    for split in ("train", "test"):
        lines = io.StringIO()
        fields = ["video", "frame_count", "question", "answer", "qid", "type"]
        table = csv.DictWriter(lines, [*fields, "additional_ref_answer"])
        table.writeheader()
        for n in range(5):
            film(root / "videos" / "1164" / f"{n}.mp4")
            row = {"video": n, "question": "why, though", "answer": "cat", "qid": n, "type": "CW"}
            table.writerow(row | {"additional_ref_answer": "a kitten" if n else ""})
        write(root / f"{split}.csv", lines.getvalue())


MAKERS = {
    "coco": coco,
    "flickr30k": flickr30k,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "hateful_memes": hateful_memes,
    "imagenet": imagenet,
    "msvdqa": msvdqa,
    "nextqa": nextqa,
}


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


MEDIA = Media("a", lambda: picture_bytes())
SHOT = Example(MEDIA, "two", ("two",), {"question": "How many?"})
QUERY = Example(MEDIA, "one", ("one",), {"question": "What?"})


def picture_bytes() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return file.getvalue()


def shown(parts: Iterable[Any]) -> str:
    return "".join(part.get("text", "<image>") for part in parts)


@pytest.mark.parametrize(
    ("wording", "text"),
    [
        (
            "paper",
            "<image> Question: How many? Answer: two<|endofchunk|><image> Question: What? Answer:",
        ),
        (
            "openflamingo",
            "<image>Question:How many? Short answer:two<|endofchunk|>\n"
            "<image>Question:What? Short answer:",
        ),
    ],
)
def test_published_wordings_are_written_out(wording: str, text: str) -> None:
    question = FewShot(Data([], []), VQA).question(QUERY, (SHOT,))
    parts = request(question, wording)["prompt"]
    assert shown(parts) == text
    special = [part["text"] for part in parts if part.get("special_tokens")]
    assert special == ["<|endofchunk|>"]


def test_published_wordings_write_candidates_and_braces_as_they_are() -> None:
    meme = Example(MEDIA, "yes", ("yes",), {"text": "its {fun}"})
    question = FewShot(Data([], [], ("no", "yes")), MEMES).question(meme, (meme,))
    assert candidates(question, "paper") == [" no", " yes"]
    assert candidates(question, "openflamingo") == candidates(question, "family") == ["no", "yes"]
    assert 'written: "its {fun}" on it' in shown(request(question, "paper")["prompt"])
    named = FewShot(Data([], [], ("a",)), CLASSIFY).question(meme, ())
    assert shown(request(named, "paper")["prompt"]) == "<image> Output:"


def test_the_wordings_are_the_servers_own() -> None:
    """What the server would write for a family of that wording, task by task."""
    from flamingo_eval.prompts import WORDINGS
    from flamingo_model.templates import FAMILIES

    for wording, tasks in WORDINGS.items():
        for task, (before, blank, after) in tasks.items():
            theirs = FAMILIES[wording][task].example
            field = {"caption": "caption", "vqa": "answer"}.get(task, "label")
            ours = f"<image>{before}{blank}{{{field}}}<|endofchunk|>{after}"
            assert theirs == ours


@pytest.mark.parametrize(
    ("task", "answer", "counts"),
    [
        ("caption", ' a "red" bus Output: a cat', "a red bus"),
        ("vqa", " two Question: what", "two"),
        ("vqa", "yes, it is", "yes"),
        ("vqa", "a cat Short answer: no", "a cat"),
        ("{question} {answer}", " dax ", "dax"),
    ],
)
def test_an_answer_ends_where_another_example_would_begin(
    task: str, answer: str, counts: str
) -> None:
    assert trimmed(answer, task) == counts


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

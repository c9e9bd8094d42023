"""The emoji tasks, against a server that knows all the answers, or none, or fails."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from clients.eval_world import KnowsTheWorld, bytes_of, make_exam
from flamingo_client import AsyncFlamingoClient
from flamingo_eval.asking import Asker, Style
from flamingo_eval.benchmark import Choice, Result, Row, run_task
from flamingo_eval.examples import Plan, Question
from flamingo_eval.tasks import EMOJI, TASKS
from flamingo_eval.tasks.base import MissingFiles
from flamingo_eval.tasks.emoji_world import load_world
from flamingo_eval.tasks.words import GREY, grey, handwritten

EXAM = make_exam()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return EXAM.write(tmp_path_factory.mktemp("exam")).parent


def run(
    name: str,
    folder: Path,
    server: Callable[[httpx.Request], httpx.Response],
    steps: list[str] | None = None,
    **choice: Any,
) -> Result:
    """`steps` gathers the name of the bar, once a question."""
    kept: list[str] = [] if steps is None else steps

    async def evaluate() -> Result:
        transport = httpx.MockTransport(server)
        async with AsyncFlamingoClient(transport=transport, max_retries=0) as client:
            asker = Asker(client, 4, Style())
            options = Choice(folder, **{"num": 12, **choice})
            return await run_task(
                TASKS[name], options, asker, lambda bar, total: lambda: kept.append(bar)
            )

    return asyncio.run(evaluate())


def by_group(rows: list[Row]) -> dict[str, Row]:
    return {row.group: row for row in rows}


KNOWN = [
    task.name for task in EMOJI if not task.name.endswith("blind") and "digits" not in task.name
]


@pytest.mark.parametrize("name", KNOWN)
def test_who_knows_everything_scores_1(name: str, folder: Path) -> None:
    result = run(name, folder, KnowsTheWorld(EXAM))
    assert result.rows and result.problem is None
    for row in result.rows:
        assert (row.value, row.failed, row.deviation) == (1.0, {}, None)
        assert row.interval[0] < 1 and row.num > 3


@pytest.mark.parametrize("name", KNOWN)
def test_who_says_nothing_right_scores_0(name: str, folder: Path) -> None:
    server = KnowsTheWorld(EXAM)
    server.answer = lambda body: "nothing"  # type: ignore[method-assign]
    for row in run(name, folder, server).rows:
        if TASKS[name].metric.name == "exact match":
            assert row.value == 0.0
        else:  # the candidates are ranked as they came, the shots' words by chance among them
            assert row.chance is not None and row.value < 0.9


def drawn(name: str, folder: Path, shots: int, num: int = 30, seed: int = 0) -> list[Question]:
    source = TASKS[name].load(folder)
    asker = Asker(AsyncFlamingoClient(), 1, Style())
    return asyncio.run(source.questions(Plan(shots, "random", seed, num, 0), asker))


@pytest.mark.parametrize(("name", "ways"), [("emoji-words-2way", 2), ("emoji-words-5way", 5)])
@pytest.mark.parametrize("shots", [1, 4])
def test_an_episode_shows_each_thing_as_often_and_asks_for_an_unseen_picture(
    name: str, ways: int, shots: int, folder: Path
) -> None:
    objects = {p.media.key: p for p in load_world(folder).pictures}
    for question in drawn(name, folder, shots):
        shown = [(objects[s.media.key].objects[0], s.answer) for s in question.shots]
        assert len(shown) == ways * shots and len(set(shown)) == ways
        assert len({word for _, word in shown}) == len({word[:3] for _, word in shown}) == ways
        families = {objects[s.media.key].families[0] for s in question.shots}
        assert len(families) == ways and len({s.media.key for s in question.shots}) == len(shown)
        assert question.query.media.key not in {s.media.key for s in question.shots}
        assert (objects[question.query.media.key].objects[0], question.query.answer) in shown
        assert {p.split for p in map(objects.get, [s.media.key for s in question.shots]) if p} == {
            "held_out"
        }
        assert set(question.candidates) == {word for _, word in shown}


def test_episodes_repeat_with_the_seed_and_differ_with_another(folder: Path) -> None:
    def keys(seed: int) -> list[Any]:
        some = drawn("emoji-words-5way", folder, 2, seed=seed)
        return [([s.media.key for s in q.shots], q.query.media.key, q.candidates) for q in some]

    assert keys(1) == keys(1) != keys(2)


def test_blinded_episodes_are_the_same_with_grey_pictures(folder: Path) -> None:
    seeing, blind = (drawn(f"emoji-words-5way{end}", folder, 1) for end in ("", "-blind"))
    for one, other in zip(seeing, blind, strict=True):
        assert [s.answer for s in one.shots] == [s.answer for s in other.shots]
        assert {s.media for s in (*other.shots, other.query)} == {GREY}
        assert (one.case, one.candidates) == (other.case, other.candidates)


def test_blinded_requests_hold_the_grey_picture_alone(folder: Path) -> None:
    server = KnowsTheWorld(EXAM)
    server.row_of[grey()] = {"objects": ["grey"], "background": "", "count": ""}
    (row, *_) = run("emoji-words-2way-blind", folder, server, shots=(1,)).rows
    asked = [body for path, body in server.bodies if path == "/v1/classify"]
    assert {bytes_of(item) for b in asked for item in (*b["examples"], b["query"])} == {grey()}
    assert row.pixels == row.features == row.chance == 0.5


def test_baselines_stand_beside_the_words(folder: Path) -> None:
    rows = run("emoji-words-5way", folder, KnowsTheWorld(EXAM), shots=(1,)).rows
    (row,) = rows
    assert row.chance == pytest.approx(0.2) and row.features == 1.0  # objects lie apart
    assert row.pixels is not None and 0 <= row.pixels < 1
    assert row.less_features is not None and row.less_features.mean == 0.0


def test_without_embeddings_the_rest_of_the_row_stands(folder: Path) -> None:
    server = KnowsTheWorld(EXAM, fails=lambda path, n: 404 if path == "/v1/embeddings" else 200)
    (row,) = run("emoji-words-2way", folder, server, shots=(1,)).rows
    assert (row.value, row.chance, row.features, row.less_features) == (1.0, 0.5, None, None)
    assert row.note.startswith("no embeddings of") and row.pixels is not None


def test_a_picture_is_embedded_once(folder: Path) -> None:
    server = KnowsTheWorld(EXAM)
    run("emoji-rices", folder, server)
    assert len(server.embedded) == len(set(server.embedded)) > 0


def test_digits_are_smooth_dark_on_light_and_all_there() -> None:
    things = handwritten()
    assert sorted(things.pictures) == list("0123456789")
    assert sum(map(len, things.pictures.values())) == 1797
    media = things.pictures["0"][0]
    with Image.open(io.BytesIO(media.read())) as picture:
        assert (picture.size, picture.mode) == ((64, 64), "RGB")
        colours = picture.convert("L").getextrema()
        assert picture.getpixel((0, 0)) == (255, 255, 255) and colours[0] < 40  # type: ignore[operator]


def test_digits_are_asked_with_made_up_words(folder: Path) -> None:
    for question in drawn("digits-5way", folder, 4, num=5):
        assert len(question.shots) == 20 and len(question.candidates) == 5
        assert all(shot.media.key.startswith("digit-") for shot in question.shots)


def test_a_film_is_sent_whole(folder: Path) -> None:
    server = KnowsTheWorld(EXAM)
    rows = by_group(run("emoji-films", folder, server).rows)
    assert set(rows) == {"known", "held_out"}
    queries = [body["query"] for _, body in server.bodies]
    assert {(query["fps"], query["max_frames"]) for query in queries} == {(4.0, 3)}


def test_hidden_tasks_show_three_distinct_answers(folder: Path) -> None:
    for question in drawn("emoji-task-inference", folder, 3):
        assert len({shot.answer for shot in question.shots}) == 3
        assert question.query.media not in [shot.media for shot in question.shots]
    rows = by_group(run("emoji-task-inference", folder, KnowsTheWorld(EXAM)).rows)
    assert set(rows) == {"colour", "count", "name"} and rows["name"].shots == 3


def test_questions_are_counted_by_kind_and_split(folder: Path) -> None:
    rows = by_group(run("emoji-questions", folder, KnowsTheWorld(EXAM)).rows)
    assert {"colour, known", "colour, held_out", "count, known", "where, known"} <= set(rows)


def test_rices_is_compared_with_chance_pair_by_pair(folder: Path) -> None:
    """Who copies the last shot's answer is right where the last shot is like the query."""
    server = KnowsTheWorld(EXAM)

    def copies(body: dict[str, Any]) -> str:
        last = body["examples"][-1]
        return str(last.get("answer") or last["caption"])

    server.answer = copies  # type: ignore[method-assign]
    result = run("emoji-rices", folder, server, num=40)
    rows, (captions, questions) = by_group(result.rows), result.differences
    assert rows["questions, RICES"].value > rows["questions, random"].value
    assert questions.mean == pytest.approx(
        rows["questions, RICES"].value - rows["questions, random"].value
    )
    assert questions.interval[0] < questions.mean < questions.interval[1]
    assert captions.num == 24 and questions.num == rows["questions, random"].num


def test_the_most_similar_shot_is_the_last_and_never_the_query(folder: Path) -> None:
    server = KnowsTheWorld(EXAM)
    run("emoji-rices", folder, server, num=40)
    asked = [b for path, b in server.bodies if path == "/v1/generate" and "question" in b["query"]]
    whats = [b for b in asked if "what?" in b["query"]["question"]]
    same = [
        server.row_of[bytes_of(b["examples"][-1])]["objects"]
        == server.row_of[bytes_of(b["query"])]["objects"]
        for b in whats
    ]
    assert all(same[: len(same) // 2]) and not all(same[len(same) // 2 :])
    for body in asked:
        shown = [bytes_of(shot) for shot in body["examples"]]
        assert len(shown) == len(set(shown)) == 4 and bytes_of(body["query"]) not in shown


def test_trials_differ_and_their_deviation_is_told(folder: Path) -> None:
    server, wrong = KnowsTheWorld(EXAM), 0
    knows = server.answer

    def errs(body: dict[str, Any]) -> str:
        nonlocal wrong
        wrong += 1
        return knows(body) if wrong > 4 else "nothing"

    server.answer = errs  # type: ignore[method-assign]
    steps = list[str]()
    (row,) = run("emoji-name", folder, server, num=10, trials=3, steps=steps).rows
    assert sorted(row.trials) == pytest.approx([0.6, 1.0, 1.0]) and row.num == 30
    assert row.value == pytest.approx(2.6 / 3)
    assert row.deviation == pytest.approx(0.2309, abs=1e-4)
    assert steps.count("emoji-name 0 shots 1/3") == 10


def test_what_fails_once_is_asked_again(folder: Path) -> None:
    server, seen = KnowsTheWorld(EXAM), set[bytes]()

    def first_time(path: str, number: int) -> int:
        picture = bytes_of(server.bodies[-1][1]["query"])
        is_new = picture not in seen
        seen.add(picture)
        return 500 if is_new else 200

    server.fails = first_time
    (row,) = run("emoji-name", folder, server).rows
    assert (row.value, row.num, row.failed) == (1.0, 12, {}) and len(server.bodies) == 24


def test_what_fails_twice_is_reported_and_in_no_figure(folder: Path) -> None:
    server = KnowsTheWorld(EXAM)
    refused = {EXAM.files[EXAM.rows[n]["file"]] for n in range(6)}
    server.fails = lambda path, n: (
        400 if bytes_of(server.bodies[-1][1]["query"]) in refused else 200
    )
    (row,) = run("emoji-name", folder, server, num=18).rows
    assert row.value == 1.0 and row.num == 12 and row.failed == {"no (HTTP 400)": 6}


def test_a_task_without_any_answer_says_why(folder: Path) -> None:
    server = KnowsTheWorld(EXAM, fails=lambda path, n: 400)
    result = run("emoji-name", folder, server)
    assert result.problem == "emoji-name at 0 shots: it got no answer: no (HTTP 400)"
    assert result.rows == []


def test_what_cannot_be_drawn_leaves_the_other_rows(folder: Path) -> None:
    result = run("emoji-words-5way", folder, KnowsTheWorld(EXAM), shots=(0, 1, 8))
    assert [row.shots for row in result.rows] == [1]
    assert result.problem and "at 8 shots: 5 families with 9 pictures" in result.problem


def test_too_few_pictures_are_said(folder: Path) -> None:
    with pytest.raises(ValueError, match="5 families with 9 pictures of one thing"):
        drawn("emoji-words-5way", folder, 8)


def test_an_exam_that_is_not_there_or_of_another_version_is_named(tmp_path: Path) -> None:
    make_exam().write(tmp_path, version=1)
    with pytest.raises(ValueError, match="version 1, not 2"):
        load_world(tmp_path)


def test_missing_files_are_a_list(tmp_path: Path) -> None:
    error = MissingFiles("coco", [tmp_path / "a", tmp_path / "b"])
    assert str(error).splitlines()[1:] == [f"  {tmp_path}/a", f"  {tmp_path}/b"]

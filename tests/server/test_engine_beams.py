"""Beams in the engine are those of the slow search, in any company, and stream what is certain."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beams import finished, processed, remembered
from fakes import TOKENIZER, Answer, FakeRunner, drive, make_engine, step
from fakes import ask as ask_fake
from flamingo_server.engine.beam import BeamOptions, BeamSearch, Hypothesis
from flamingo_server.engine.constraints import Constraint, Grammars
from flamingo_server.engine.request import Draft, Finished, Text
from tiny_engines import KINDS, alone, ask, new_engine, prompt, rank, same, whole

BARE: dict[str, Any] = {"min_tokens": 0, "logprobs": None}
WAYS: list[dict[str, Any]] = [
    {"num_beams": 3, "n": 3},
    {"num_beams": 4, "n": 2, "length_penalty": -1.0, "early_stopping": True},
    {"num_beams": 2, "n": 1, "length_penalty": 2.0, "early_stopping": "never", "min_tokens": 3},
    {"num_beams": 3, "n": 3, "score_rule": "total", "no_repeat_ngram_size": 2},
    {"num_beams": 5, "n": 5, "repetition_penalty": 1.4, "max_tokens": 6},
]
SEEDS = (0, 1)


def slow(kind: str, text: str, rules: dict[str, Any]) -> list[Hypothesis]:
    """The whole sequence of every beam in each step, without engine or cache."""
    engine, asked = new_engine(kind), prompt(text, *SEEDS)
    rules = {"max_tokens": 12, **rules}

    def log_probs(beams: list[tuple[int, ...]]) -> Tensor:
        rows = torch.stack([whole(kind, asked, list(beam))[-1].float() for beam in beams])
        return rows

    processors = {
        k: rules.pop(k) for k in ("no_repeat_ngram_size", "repetition_penalty") if k in rules
    }
    processors["min_new_tokens"] = rules.pop("min_tokens", 0)
    scores = processed(remembered(log_probs), asked.token_ids, engine.stop_ids, **processors)

    def banned(beams: list[tuple[int, ...]]) -> Tensor:
        found = scores(beams)
        found[:, engine.banned] = -torch.inf
        return found

    search = BeamSearch(BeamOptions(**rules), len(asked.token_ids), engine.stop_ids)
    return finished(search, banned)


def assert_found(answer: Answer, expected: list[Hypothesis]) -> None:
    ended = [e for e in answer.events if isinstance(e, Finished)]
    assert len(ended) == len(expected)
    for index, (event, hypothesis) in enumerate(zip(ended, expected, strict=True)):
        assert answer.token_ids(index) == list(hypothesis.token_ids)
        assert event.finish_reason == hypothesis.finish_reason
        assert event.score is not None and abs(event.score - hypothesis.score) < 1e-4


@pytest.mark.parametrize(
    "kind", [k if k in ("tiny", "mpt") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_beams_of_all_widths_in_one_batch_are_those_of_the_slow_search(kind: str) -> None:
    engine, plain = new_engine(kind, max_running=60), alone("beside", 2, kind=kind)
    answers = [ask(engine, "what", *SEEDS, **{**BARE, **rules}) for rules in WAYS]
    beside = ask(engine, "beside", 2)
    step(engine, 2)
    late = ask(engine, "what", *SEEDS, **{**BARE, **WAYS[0]})
    drive(engine)
    for answer, rules in zip([*answers, late], [*WAYS, WAYS[0]], strict=True):
        assert_found(answer, slow(kind, "what", rules))
    assert same(beside, plain)


@pytest.mark.parametrize("limits", [{"num_blocks": 40}, {"max_step_tokens": 2}], ids=str)
@pytest.mark.parametrize("kind", ["tiny", "mpt"])
def test_displaced_and_starved_beams_are_those_of_the_slow_search(
    kind: str, limits: dict[str, int]
) -> None:
    engine = new_engine(kind, **limits)
    answers = [ask(engine, "what", *SEEDS, **{**BARE, **WAYS[i]}) for i in (0, 2, 3)]
    for number in range(12):
        step(engine, 1 + number % 4)
        if engine.scheduler.running:
            engine.scheduler.preempt(
                engine.scheduler.running[number % len(engine.scheduler.running)]
            )
    drive(engine)
    for answer, i in zip(answers, (0, 2, 3), strict=True):
        assert_found(answer, slow(kind, "what", WAYS[i]))


def test_logprobs_of_beams_are_the_models_own() -> None:
    answer = alone("what", *SEEDS, **{**WAYS[4], "logprobs": 2})
    for index in range(5):
        ids = answer.token_ids(index)
        rows = whole("tiny", prompt("what", *SEEDS), ids)[-len(ids) - 1 : -1]
        expected = [float(row[t]) for row, t in zip(rows, ids, strict=True)]
        assert np.allclose(answer.logprobs(index), expected, atol=1e-4)
        tops = [
            t
            for e in answer.events
            if isinstance(e, Text) and e.index == index
            for t in e.logprobs or []
        ]
        assert np.allclose(
            [p for t in tops for _, p in t.top], rows.topk(2).values.flatten(), atol=1e-4
        )


def test_logprobs_are_there_also_where_many_tokens_end_a_beam() -> None:
    stops = tuple("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    for text in ("what", "is", "this", "then"):
        answer = alone(
            text, **{"num_beams": 6, "n": 6, "logprobs": 1, "stop": stops, "min_tokens": 0}
        )
        assert answer.names[-1] == "Ended"


# ---- text


@pytest.mark.parametrize("stop", [(), ("e", "t"), ("ab",)], ids=str)
@pytest.mark.parametrize("penalty", [-1.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_streamed_joins_to_the_text_of_the_best(
    stop: tuple[str, ...], penalty: float, seed: int
) -> None:
    rules: dict[str, Any] = {"num_beams": 3, "n": 2, "length_penalty": penalty, "stop": stop}
    engine = make_engine()
    answer = ask_fake(engine, f"streamed {seed}", stream_hypotheses=True, max_tokens=24, **rules)
    texts = []
    while not answer.has_ended:
        step(engine)
        texts.append(answer.text())
    for index in range(2):
        ids = [i for i in answer.token_ids(index) if i not in engine.stop_ids]
        text = TOKENIZER.decode(ids)
        found = [at for s in stop if (at := text.find(s)) >= 0]
        assert answer.text(index) == (text[: min(found)] if found else text)
    assert all(answer.text().startswith(text) for text in texts)
    drafts = [e for e in answer.events if isinstance(e, Draft)]
    assert len(drafts) >= len(texts) - 1 and drafts[-1].text.startswith(texts[-2])
    assert [e for e in answer.events if isinstance(e, Text)]
    whole_answer = ask_fake(engine, f"streamed {seed}", max_tokens=24, **rules)
    drive(engine)
    assert [whole_answer.text(i) for i in range(2)] == [answer.text(i) for i in range(2)]


def test_beams_stream_before_they_end() -> None:
    engine = make_engine()
    answer = ask_fake(engine, "a long answer", num_beams=3)
    step(engine, 6)
    assert answer.text() and not answer.has_ended
    drive(engine)
    assert answer.text() == "rewsna gnol a"


def test_a_deadline_between_beams_keeps_the_best_so_far() -> None:
    engine = make_engine()
    answer = ask_fake(engine, "abcdefgh", num_beams=3, n=2)
    step(engine, 4)
    engine.scheduler.running[0].deadline = 0.0
    drive(engine)
    assert answer.reasons == ["timeout"] * 2 and answer.text().startswith("hgf")
    assert answer.names[-1] == "Ended"


def test_a_client_that_leaves_between_beams_leaves_nothing() -> None:
    engine = make_engine()
    gone, stays = ask_fake(engine, "gone", num_beams=4), ask_fake(engine, "stays", num_beams=2)
    step(engine, 3)
    gone.handle.cancel()
    drive(engine)
    assert stays.text() == "syats" and engine.blocks.num_used == 0


def test_beams_that_end_in_nan_end_alone() -> None:
    engine = make_engine(FakeRunner(not_finite="poison"))
    bad, good = ask_fake(engine, "poison", num_beams=3), ask_fake(engine, "good", num_beams=3)
    drive(engine)
    assert bad.names[-1] == "EngineFailure" and good.text() == "doog"


# ---- constraints


def grammar(kind: Any, value: str) -> Any:
    engine = make_engine()
    return Grammars(TOKENIZER, 264, engine.stop_ids).compile(Constraint(kind, value))


@pytest.mark.parametrize(
    "rules", [{"temperature": 2.0, "n": 4, "seed": 1}, {"num_beams": 4, "n": 4}, {}], ids=str
)
def test_every_answer_follows_its_constraint(rules: dict[str, Any]) -> None:
    engine, regex = new_engine(), "[a-c]{2,6}(x|yz)"
    given = {**BARE, "max_tokens": 20, **rules}
    free = ask(engine, "free", 2)
    bound = [ask(engine, "what", *SEEDS, grammar=grammar("regex", regex), **given)]
    chosen = ask(engine, "is", grammar=grammar("choices", '["cat", "car", "dog", "do"]'), **given)
    beside = rank(engine, [[5, 6]], "what", 0)
    drive(engine)
    num = rules.get("n", 1)
    for answer in bound:
        texts = [answer.text(i) for i in range(num)]
        assert all(re.fullmatch(regex, text) for text in texts) and answer.names[-1] == "Ended"
    assert all(chosen.text(i) in ("cat", "car", "dog", "do") for i in range(num))
    if "num_beams" in rules:
        assert {chosen.text(i) for i in range(4)} == {"cat", "car", "dog", "do"}
    assert same(free, alone("free", 2)) and beside.scores()


def test_where_a_constraint_leaves_fewer_answers_than_asked_the_others_are_errors() -> None:
    engine = new_engine()  # one text, two tokens that may end it
    rules = {**BARE, "num_beams": 4, "n": 4, "grammar": grammar("choices", '["no"]')}
    answer = ask(engine, "what", *SEEDS, **rules)
    drive(engine)
    assert [answer.text(i) for i in range(4)] == ["no", "no", "", ""]
    assert answer.reasons == ["stop", "stop", "error", "error"] and answer.names[-1] == "Ended"

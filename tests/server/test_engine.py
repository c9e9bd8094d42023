"""The engine with a fake model: what one request gets never depends on the others."""

import random
from typing import Any

import pytest

from fakes import Answer, FakeRunner, ask, drive, make_engine, step
from flamingo_server.engine.request import Ended, Text

MIXED: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("hello", (), {}),
    ("wärme 🦩", ("x",), {"n": 2}),
    ("what is it?", ("x", "y"), {"temperature": 3.0, "seed": 5, "max_tokens": 20}),
    ("stopped by a word", (), {"stop": ("yb",)}),
    ("dice", (), {"temperature": 5.0, "seed": 6, "top_k": 40, "n": 3, "max_tokens": 12}),
    ("short", ("z",), {"max_tokens": 2, "logprobs": 2}),
    ("again and again", (), {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}),
    ("more", ("y", "y"), {"min_tokens": 9, "max_tokens": 11, "temperature": 1.0, "seed": 1}),
]


def alone(number: int) -> Answer:
    engine, (text, digests, rules) = make_engine(), MIXED[number]
    answer = ask(engine, text, *digests, **rules)
    drive(engine)
    return answer


def same(found: Answer, expected: Answer) -> bool:
    def everything(answer: Answer) -> object:
        return [(answer.text(i), answer.token_ids(i)) for i in range(3)], sorted(answer.reasons)

    return everything(found) == everything(expected)


def test_an_answer_is_announced_streamed_and_closed() -> None:
    engine = make_engine()
    answer = ask(engine, "abc")
    drive(engine)
    assert answer.names == ["Started", "Text", "Text", "Text", "Text", "Finished", "Ended"]
    assert answer.text() == "cba" and answer.reasons == ["stop"]


def test_usage_counts_tokens_and_pictures() -> None:
    engine = make_engine()
    ask(engine, "ab", "x")
    answer = ask(engine, "cd", "x", "y", n=2)
    drive(engine)
    ended = answer.events[-1]
    assert isinstance(ended, Ended)
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (4, 6)
    assert (ended.usage.media, ended.usage.cached_media) == (2, 0)


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_a_request_beside_15_others_answers_as_it_does_alone(number: int) -> None:
    engine, order = make_engine(max_running=20), [*MIXED, *MIXED]
    random.Random(number).shuffle(order)
    answers = []
    for text, digests, rules in order:
        answers.append((text, ask(engine, text, *digests, **rules)))
        step(engine)  # they come one after the other, into batches that run
    drive(engine)
    mine = [answer for text, answer in answers if text == MIXED[number][0]]
    assert len(mine) == 2 and all(same(answer, alone(number)) for answer in mine)


def test_n_choices_equal_n_requests_when_greedy() -> None:
    engine = make_engine()
    three, one = ask(engine, "choices", "x", n=3), ask(engine, "choices", "x")
    drive(engine)
    assert {three.text(i) for i in range(3)} == {one.text()}
    assert three.reasons == ["stop"] * 3


def test_choices_above_temperature_0_differ_and_repeat_with_the_seed() -> None:
    engine, rules = make_engine(), {"n": 3, "temperature": 9.0, "seed": 3, "max_tokens": 8}
    first, again = ask(engine, "dice", **rules), ask(engine, "dice", **rules)
    drive(engine)
    assert same(first, again) and len({first.text(i) for i in range(3)}) == 3


def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    engine = make_engine()
    answer = ask(engine, "one two", stop=("t e",))  # inside "owt eno"
    drive(engine)
    assert answer.text() == "ow" and answer.reasons == ["stop"]


def test_max_tokens_end_the_answer() -> None:
    engine = make_engine()
    answer = ask(engine, "abcdef", max_tokens=2)
    drive(engine)
    assert answer.text() == "fe" and answer.reasons == ["length"]


def test_every_token_is_reported_once_with_its_logprob() -> None:
    engine = make_engine()
    answer = ask(engine, "é🦩", logprobs=1)
    drive(engine)
    texts = [e for e in answer.events if isinstance(e, Text)]
    assert [len(t.token_ids) for t in texts] == [4, 2, 1]  # two characters, the end of chunk
    assert all(len(t.token_ids) == len(t.logprobs or []) for t in texts)


def test_a_higher_priority_is_served_first() -> None:
    engine = make_engine(max_running=1)
    answers = [ask(engine, "low"), ask(engine, "high", priority=1)]
    while not any(answer.has_ended for answer in answers):
        step(engine)
    assert answers[1].has_ended and not answers[0].events


def test_a_picture_is_encoded_once_for_all_who_send_it() -> None:
    runner = FakeRunner()
    engine = make_engine(runner)
    for text in ("one", "two", "three"):
        ask(engine, text, "x", "y")
        step(engine)
    drive(engine)
    assert runner.encoded == ["x", "y"]


def test_an_evicted_picture_comes_back_from_its_latents() -> None:
    runner = FakeRunner()
    engine = make_engine(runner, num_media_slots=1)
    for digest in ("x", "y", "x"):
        ask(engine, "a", digest)
        drive(engine)
    assert runner.encoded == ["x", "y"]

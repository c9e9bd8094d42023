from typing import Any

import pytest

from clients.fake_server import CLASSIFICATION, SCORES, Script, SyncWorld, answer
from flamingo_client import (
    AnswerError,
    Candidate,
    Classification,
    ClassifyOptions,
    Continuation,
    ScoredToken,
    ScoreOptions,
    Scores,
    Timings,
    Usage,
)

USAGE = Usage(9, 2, 4, 1)
TIMINGS = Timings(1.0, 2.5, 3.0, 4.0, 6.5)
COMMON: dict[str, Any] = {
    "task": "classify",
    "query": {"image": {"id": "x"}},
    "examples": [],
    "zero_shot": False,
    "model": "tiny",
    "adapter": "pets",
    "priority": 1,
    "deadline_ms": 5000,
    "cache_salt": "me",
}
CLASSIFY = {**COMMON, "normalize": "mean", "ensemble": 6, "seed": 0, "calibrate": True}


def test_candidates_come_best_first(world: type[SyncWorld]) -> None:
    script = Script(answer(json=CLASSIFICATION))
    found = world(script).call("classify", "hi", candidates=("dog", "cat"))
    best = Candidate(1, "cat", -1.0, -0.5, -1.0, 0.75)
    other = Candidate(0, "dog", -2.5, -2.5, -2.5, 0.25)
    assert found == Classification("cls-1", "tiny", (best, other), USAGE, TIMINGS)
    assert found.text == "cat"
    assert script.requests[0].url.path == "/v1/classify"
    prompt = [{"type": "text", "text": "hi"}]
    assert script.body == {"prompt": prompt, "candidates": ["dog", "cat"]}


def test_continuations_come_token_by_token(world: type[SyncWorld]) -> None:
    script = Script(answer(json=SCORES))
    found = world(script).call("score", "hi", continuations=["cat"])
    tokens = ScoredToken(7, "c", -1.0), ScoredToken(8, "at", -0.5)
    whole = Continuation(0, "cat", -1.5, -0.75, tokens)
    assert found == Scores("scr-1", "tiny", (whole,), USAGE, TIMINGS)
    assert script.requests[0].url.path == "/v1/score"
    assert script.body["continuations"] == ["cat"]


@pytest.mark.parametrize(
    ("method", "field", "options", "kind"),
    [
        ("classify", "candidates", CLASSIFY, ClassifyOptions),
        ("score", "continuations", COMMON, ScoreOptions),
    ],
)
def test_every_option_is_sent_by_its_name(
    world: type[SyncWorld], method: str, field: str, options: dict[str, Any], kind: type
) -> None:
    script = Script(answer(json={**CLASSIFICATION, **SCORES}))
    world(script).call(method, **{field: ["a"]}, **options)
    assert script.body == {field: ["a"], **options}
    assert options.keys() == kind.__annotations__.keys()


def test_an_option_of_another_method_is_refused(world: type[SyncWorld]) -> None:
    with pytest.raises(TypeError, match="unknown option: max_tokens"):
        world(Script()).call("classify", "hi", candidates=["a"], max_tokens=1)
    with pytest.raises(TypeError, match="unknown option: normalize"):
        world(Script()).call("score", "hi", continuations=["a"], normalize="sum")


@pytest.mark.parametrize(
    ("method", "field"), [("classify", "candidates"), ("score", "continuations")]
)
def test_one_string_is_not_taken_for_its_letters(
    world: type[SyncWorld], method: str, field: str
) -> None:
    with pytest.raises(TypeError, match=f"{field} takes a list"):
        world(Script()).call(method, "hi", **{field: "cat"})


def test_a_candidate_of_a_wrong_type_raises(world: type[SyncWorld]) -> None:
    wrong = {**CLASSIFICATION, "candidates": [{"index": "0"}]}
    with pytest.raises(AnswerError, match="'index'"):
        world(Script(answer(json=wrong))).call("classify", "hi", candidates=["a"])

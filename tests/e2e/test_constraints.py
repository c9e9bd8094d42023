"""Constrained answers over HTTP: the text that comes back satisfies what was asked."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from e2e.calls import ask, ask_streamed, assert_same, image, joined, png, text

PROMPT = [image(png("red")), text("what?")]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["red", "blue"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
BEAMS = {"num_beams": 3, "n": 2}
WAYS: list[dict[str, Any]] = [{}, BEAMS, {"temperature": 1.5, "seed": 3, "n": 3}]
IDS = ["greedy", "beams", "sampled"]


def texts(client: httpx.Client, rule: dict[str, Any], way: dict[str, Any]) -> list[str]:
    """Whole and streamed, which must be one."""
    rules = {"constraint": rule, "max_tokens": 100, **way}
    whole = ask(client, *PROMPT, **rules)["choices"]
    assert_same(joined(ask_streamed(client, *PROMPT, **rules)), whole)
    assert all(choice["finish_reason"] == "stop" for choice in whole)
    return [choice["text"] for choice in whole]


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_an_answer_is_one_of_the_choices(client: httpx.Client, way: dict[str, Any]) -> None:
    choices = ["cat", "cats", "a dog", "caf\u00e9"]
    assert set(texts(client, {"choices": choices}, way)) <= set(choices)


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_an_answer_matches_the_whole_regex(client: httpx.Client, way: dict[str, Any]) -> None:
    pattern = r"[a-c]{2,5}-\d\d"
    assert all(re.fullmatch(pattern, said) for said in texts(client, {"regex": pattern}, way))


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_an_answer_is_json_of_the_schema(client: httpx.Client, way: dict[str, Any]) -> None:
    said = texts(client, {"json_schema": {"enum": ["red", "blue", 12]}}, way)
    assert {json.loads(one) for one in said} <= {"red", "blue", 12}


def test_a_hot_answer_is_an_object_of_the_schema(client: httpx.Client) -> None:
    """A random model that is not hot would write spaces for ever, as JSON allows."""
    for said in texts(client, {"json_schema": SCHEMA}, {"temperature": 20.0, "seed": 1, "n": 4}):
        values = json.loads(said)
        assert set(values) == {"a", "b"} and isinstance(values["b"], bool)
        assert values["a"] in ("red", "blue")


def test_two_beams_of_a_choice_are_the_two_choices(client: httpx.Client) -> None:
    rule = {"choices": ["red", "blue"]}
    assert set(texts(client, rule, BEAMS | {"num_beams": 2})) == {"red", "blue"}

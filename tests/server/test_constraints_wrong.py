"""What clients get wrong in a constraint, and what each is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flamingo_server.engine import grammar as rules
from flamingo_server.engine.grammar import Compiler, Constraint, ConstraintError, Vocabulary
from flamingo_server.errors import BadRequest
from tiny import tiny_tokenizer

COMPILER = Compiler(Vocabulary.of(tiny_tokenizer(), 264, [0, 1]))


def choices(*texts: str) -> Constraint:
    return Constraint("choices", json.dumps(texts))


def regex(pattern: str) -> Constraint:
    return Constraint("regex", pattern)


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def nested(depth: int) -> Constraint:
    return Constraint("json_schema", '{"items":' * depth + "{}" + "}" * depth)


WRONG = {
    "unclosed": (regex("(a"), "unclosed group"),
    "look-around": (regex("a(?=b)"), "look-around"),
    "back-reference": (regex(r"(a)\1"), "backreferences"),
    "word boundary": (regex(r"\ba"), r"no \\b"),
    "anchor inside": (regex("a$b"), "at its ends only"),
    "parentheses": (regex("(" * 2000 + ")" * 2000), "nested"),
    "escape": (regex("a)(b"), "unopened group"),
    "matches nothing": (regex(r"[^\s\S]"), "No text satisfies"),
    "long": (regex("a" * (rules.MAX_REGEX_CHARS + 1)), "shorten it to at most 4,096"),
    "surrogate": (regex("\ud800"), "Unicode"),
    "no list": (Constraint("choices", '"yes"'), "must be a list"),
    "no JSON": (Constraint("choices", "[yes]"), "valid JSON"),
    "no choices": (choices(), "at least one"),
    "empty choice": (choices("a", ""), r"choices\[1\]"),
    "number": (Constraint("choices", "[1]"), r"choices\[0\] must be a string"),
    "half a pair": (choices("\ud800"), r"choices\[0\] must be Unicode"),
    "many choices": (choices(*["a"] * (rules.MAX_CHOICES + 1)), "at most 10,000"),
    "long choices": (choices("a" * rules.MAX_CHOICES_CHARS), "shorten it to at most 400,000"),
    "schema list": (schema([]), "must be a JSON object"),
    "schema text": (Constraint("json_schema", "{"), "valid JSON"),
    "schema type": (schema({"type": "nonsense"}), "nonsense"),
    "schema false": (schema(False), "No text satisfies"),
    "schema loop": (schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "No te"),
    "schema not": (schema({"not": {"type": "string"}}), 'Unimplemented keys: ."not"'),
    "schema elsewhere": (schema({"$ref": "http://example.com/x.json"}), "does not fetch"),
    "schema file": (schema({"$ref": "file:///etc/passwd"}), "does not fetch"),
    "schema deep": (nested(600), "nested too deeply|too complex"),
    "schema deepest": (nested(1500), "nested too deeply"),
    "schema long": (schema({"description": "a" * rules.MAX_SCHEMA_CHARS}), "at most 16,384"),
    "schema alternatives": (schema({"anyOf": [{"oneOf": [True] * 20}] * 5}), "105 alternatives"),
    "schema switches": (schema({"x-guidance": {"lenient": True}}), "x-guidance"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_bad_constraint_is_a_bad_request_that_says_why(wrong: str) -> None:
    constraint, message = WRONG[wrong]
    with pytest.raises(ConstraintError, match=message) as caught:
        COMPILER.compile(constraint)
    assert isinstance(caught.value, BadRequest)
    assert (caught.value.param, caught.value.code) == ("constraint", "bad_constraint")
    assert len(caught.value.message) < 300

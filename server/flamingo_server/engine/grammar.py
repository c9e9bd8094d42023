"""A client's constraint → llguidance's matcher, under limits. It knows no torch: the process that
tries strangers' constraints out first must start fast and stay small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from tokenizers import Tokenizer

from ..errors import BadRequest

MAX_REGEX_CHARS = 4096
MAX_SCHEMA_CHARS = 16_384
MAX_SCHEMA_ALTERNATIVES = 100
"""In all `anyOf`, `oneOf` and lists of types: a mask takes the square of those that look alike."""
MAX_CHOICES = 10_000
MAX_CHOICES_CHARS = 400_000
"""All of them together, as JSON. At these limits a compile takes a fifth of a second."""

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    max_items_in_row=1000,  # the two that bound one mask, which the whole batch waits for
    step_max_items=5000,
    max_lexer_states=10_000,  # one or two kilobytes each, kept as long as the grammar
    max_grammar_size=100_000,
    verbose_errors=False,
)


class ConstraintError(BadRequest):
    """The constraint is malformed, unsatisfiable or too complex; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="constraint", code="bad_constraint")


TOO_COMPLEX = "The constraint is too complex: make it shorter, with fewer alternatives and repeats."


@dataclass(frozen=True)
class Constraint:
    """What the whole answer must be. Hashable: the key of the cache of grammars.

    `choices`: `value` is a JSON list of strings; the answer is one of them.
    `regex`: `value` is a pattern in the syntax of Rust's `regex` crate, without look-around and
    back-references. It matches the whole answer; `\\d` and `\\w` are ASCII, as in JSON Schema.
    `json_schema`: `value` is the JSON of a schema; white space between JSON's tokens is free
    (llguidance's default). Keywords that llguidance does not know it ignores; those it knows and
    cannot follow are refused.
    """

    kind: Literal["choices", "regex", "json_schema"]
    value: str

    def to_grammar(self, strips_space: bool) -> str:
        """llguidance's JSON for it. Where decoding `strips_space`, one may lead the answer.

        Raises ConstraintError; what only llguidance can find wrong, `Compiler.compile` raises.
        """
        if self.kind == "json_schema":
            return schema_grammar(read_schema(self.value), strips_space)
        if self.kind == "regex":
            check_length("regex", self.value, MAX_REGEX_CHARS)
            check_unicode("The regex", self.value)
            return regex_grammar(self.value, strips_space)
        return regex_grammar("|".join(map(escape, read_choices(self.value))), strips_space)


@dataclass(frozen=True)
class Vocabulary:
    """What llguidance needs of a tokenizer, picklable. `size` counts the model's rows, spare ones
    too; `end_ids` end an answer."""

    tokenizer_json: str
    size: int
    end_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int, end_ids: list[int]) -> Vocabulary:
        return cls(tokenizer.to_str(), size, tuple(end_ids))


class Compiler:
    """Cheap to make: the tokenizer is read with the first constraint (50,000 tokens: 0.3 s)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def compile(self, constraint: Constraint) -> LLMatcher:
        """A matcher at the start of the answer; copy it, never advance it. Raises ConstraintError.

        Thread-safe, and the interpreter runs on meanwhile.
        """
        try:
            grammar = constraint.to_grammar(self.strips_space)
        except RecursionError as error:
            raise ConstraintError("The constraint is nested too deeply: make it flat.") from error
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first is the slowest; and an empty language shows here
        if matcher.is_error():
            raise ConstraintError(explain(constraint, matcher))
        return matcher

    @cached_property
    def tokenizer(self) -> LLTokenizer:
        vocabulary = self.vocabulary
        return LLTokenizer(
            without_special(vocabulary.tokenizer_json),
            n_vocab=vocabulary.size,
            eos_token=list(vocabulary.end_ids),
        )

    @cached_property
    def strips_space(self) -> bool:
        """Whether decoding drops one leading space, as LLaMA's does: `▁yes` decodes to `yes`."""
        tokenizer = Tokenizer.from_str(self.vocabulary.tokenizer_json)
        spelt = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("a", " a")]
        return any(self.tokenizer.decode_str(ids) != tokenizer.decode(ids) for ids in spelt)


def without_special(tokenizer_json: str) -> str:
    """The tokenizer without its special tokens: an answer that must read `</s>` spells it out.

    With them, llguidance would force the end token for that text. The mask rules them out anyway.
    """
    values: dict[str, Any] = json.loads(tokenizer_json)
    values["added_tokens"] = [t for t in values["added_tokens"] if not t["special"]]
    values["post_processor"] = None
    return json.dumps(values)


# ---- grammars


def regex_grammar(pattern: str, strips_space: bool) -> str:
    answer = f"/{regex_to_lark(pattern or '()', use_ascii='dw')}/"
    if not strips_space:
        return lark_grammar(f"start: {answer}")
    start = r"ANSWER: / / TEXT | TEXT & /([^ ](?s:.)*)?/"
    return lark_grammar(f"start: ANSWER\n{start}\nTEXT: {answer}")


def schema_grammar(schema: Any, strips_space: bool) -> str:
    start = {"name": "start", "lark_grammar": f"start: {'/ ?/ ' if strips_space else ''}@schema"}
    return json.dumps({"grammars": [start, {"name": "schema", "json_schema": schema}]})


def lark_grammar(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def escape(text: str) -> str:
    """A pattern that matches `text` alone."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


# ---- reading what clients send


def read_choices(value: str) -> list[str]:
    check_length("list of choices", value, MAX_CHOICES_CHARS)
    choices = read_json("choices", value)
    if not isinstance(choices, list) or not choices:
        raise ConstraintError("choices must be a list with at least one string.")
    if len(choices) > MAX_CHOICES:
        raise ConstraintError(
            f"choices has {len(choices):,} entries; send at most {MAX_CHOICES:,}."
        )
    for i, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise ConstraintError(f"choices[{i}] must be a string that is not empty.")
        check_unicode(f"choices[{i}]", choice)
    return choices


def read_schema(value: str) -> Any:
    check_length("json_schema", value, MAX_SCHEMA_CHARS)
    schema = read_json("json_schema", value)
    if not isinstance(schema, dict | bool):
        raise ConstraintError("json_schema must be a JSON object.")
    if isinstance(schema, dict) and "x-guidance" in schema:  # switches of llguidance's own
        raise ConstraintError("json_schema must not contain x-guidance: leave it out.")
    count = num_alternatives(schema)
    if count > MAX_SCHEMA_ALTERNATIVES:
        raise ConstraintError(
            f"json_schema has {count:,} alternatives in anyOf, oneOf and lists of types; "
            f"use at most {MAX_SCHEMA_ALTERNATIVES}. Values to choose from belong in enum."
        )
    return schema


def num_alternatives(schema: Any) -> int:
    if isinstance(schema, list):
        return sum(map(num_alternatives, schema))
    if not isinstance(schema, dict):
        return 0
    lists = (schema.get(key) for key in ("anyOf", "oneOf", "type"))
    own = sum(len(entries) for entries in lists if isinstance(entries, list))
    return own + sum(map(num_alternatives, schema.values()))


def read_json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError as error:
        raise ConstraintError(f"{name} must be valid JSON.") from error


def check_length(noun: str, value: str, limit: int) -> None:
    if len(value) > limit:
        raise ConstraintError(
            f"The {noun} has {len(value):,} characters; shorten it to at most {limit:,}."
        )


def check_unicode(noun: str, text: str) -> None:
    """JSON can name half of a surrogate pair; no token spells it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConstraintError(f"{noun} must be Unicode text, without lone surrogates.") from error


LONGEST_REASON = 200


def explain(constraint: Constraint, matcher: LLMatcher) -> str:
    """llguidance's complaint in a sentence; it has no error classes, only texts."""
    text = matcher.get_error()
    if text.startswith("NoExtension") or "nsatisfiable" in text:
        return f"No text satisfies the {constraint.kind}: remove what contradicts itself."
    if any(word in text for word in ("fuel", "limit", "too ", "Too ", "panic", "precomputation")):
        return TOO_COMPLEX
    if "lookarounds" in text:
        return r"The regex may have ^ and $ at its ends only, and no \b: it matches a whole answer."
    reason = text.partition("error: ")[2] or text  # regex errors draw the pattern first
    reason = reason.strip().partition("\n")[0][:LONGEST_REASON]
    return f"The {constraint.kind} cannot be used: {reason}"

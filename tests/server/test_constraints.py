"""Whatever the logits and the tokenizer, an answer under a constraint satisfies it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_model.training import emoji
from flamingo_server.engine.constraints import Constraint, ConstraintError, Grammars, Matcher
from tiny import tiny_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SHIPPED = Path(emoji.__file__).parent / "checkpoint" / "tokenizer.json"
FILES = {path.relative_to(GOLDEN).parts[0]: path for path in GOLDEN.rglob("tokenizer.json")}
NAMES = ["tiny", "shipped", *sorted(FILES)]
LLAMA = "idefics_qkln"
ENDS = ("</s>", "<|endofchunk|>", "<|endoftext|>")
SPARE_ROWS = 10
SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["flamingo", "crème 🦩", "</s>"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 12},
        "pink": {"type": "boolean"},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["animal", "legs", "pink"],
    "additionalProperties": False,
}


@cache
def tokenizer(name: str) -> Tokenizer:
    path = SHIPPED if name == "shipped" else FILES.get(name)
    return Tokenizer.from_file(str(path)) if path else tiny_tokenizer()


@cache
def grammars(name: str) -> Grammars:
    ends = [i for t in ENDS if (i := tokenizer(name).token_to_id(t)) is not None]
    return Grammars(tokenizer(name), tokenizer(name).get_vocab_size() + SPARE_ROWS, ends)


def choices(*texts: str) -> Constraint:
    return Constraint("choices", json.dumps(texts))


def regex(pattern: str) -> Constraint:
    return Constraint("regex", pattern)


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


def pick(mask: Tensor, name: str, random: torch.Generator) -> int:
    """Random logits, with white space made unlikely: JSON lets it go on for ever."""
    logits = torch.randn(len(mask), generator=random)
    logits[is_space(name)] -= 5
    return int(logits.masked_fill(~mask, -torch.inf).argmax())


@cache
def is_space(name: str) -> Tensor:
    llg = grammars(name).compiler.tokenizer
    return torch.tensor([not llg.decode_bytes([i]).strip() for i in range(llg.vocab_size)])


def answer(matcher: Matcher, name: str, seed: int, limit: int = 300) -> list[int]:
    """Tokens until the grammar is finished or an end token is drawn."""
    random, ids = torch.Generator().manual_seed(seed), []
    while not matcher.is_finished:
        assert len(ids) < limit
        token = pick(matcher.allowed(), name, random)
        matcher.accept(token)
        if token in grammars(name).alphabet.end_ids:
            break
        ids.append(token)
    return ids


def text_of(ids: list[int], name: str) -> str:
    return tokenizer(name).decode(ids, skip_special_tokens=True)


def spell(text: bytes, name: str) -> list[int]:
    return grammars(name).compiler.tokenizer.tokenize_bytes(text)


# ---- every tokenizer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "pattern",
    [
        "[a-c]{2,4}",
        r"\d{1,3}(\.\d)?",
        "yes|no| maybe|  two",
        " {0,3}x",
        "é🦩?|ü{1,2}",
        r"[^\n]{1,6}",
        "</s>|a<image>|<s>b|<pad>",
        "(?i)ab/c",
        r"^\w{1,5},$",
        r"[\x00-\x1f]{1,2}",
        "",
        '"[^"]{0,3}"#//',
    ],
)
def test_random_logits_under_a_regex_give_a_full_match(name: str, pattern: str) -> None:
    grammar = grammars(name).compile(regex(pattern))
    for seed in range(4):
        text = text_of(answer(grammar.start(), name, seed), name)
        assert re.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("name", NAMES)
def test_random_logits_under_choices_give_one_of_them(name: str) -> None:
    texts = ["yes", "yesterday", " yes", "  two", "crème 🦩", "</s>", "<image>", "a\n\0b", "\ufffd"]
    grammar = grammars(name).compile(choices(*texts))
    assert {text_of(answer(grammar.start(), name, seed), name) for seed in range(20)} <= set(texts)


@pytest.mark.parametrize("name", NAMES)
def test_random_logits_under_a_schema_give_json_that_follows_it(name: str) -> None:
    grammar = grammars(name).compile(schema(SCHEMA))
    for seed in range(3):
        value = json.loads(text_of(answer(grammar.start(), name, seed), name))
        assert value["animal"] in SCHEMA["properties"]["animal"]["enum"]
        assert type(value["legs"]) is int and 0 <= value["legs"] <= 12
        assert type(value["pink"]) is bool
        assert all(isinstance(note, str) and len(note) <= 3 for note in value.get("notes", []))
        assert len(value.get("notes", [])) <= 2 and set(value) <= set(SCHEMA["properties"])


@pytest.mark.parametrize("name", ["shipped", LLAMA])
@given(texts=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5), seed=st.integers(0))
def test_any_choices_at_all_can_be_spelt_and_nothing_else(
    name: str, texts: list[str], seed: int
) -> None:
    matcher = grammars(name).compile(choices(*texts)).start()
    assert text_of(answer(matcher, name, seed % 2**32), name) in texts


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_and_spare_rows_are_never_allowed(name: str) -> None:
    added = tokenizer(name).get_added_tokens_decoder()
    ends = grammars(name).alphabet.end_ids
    special = [i for i, token in added.items() if token.special and i not in ends]
    matcher = grammars(name).compile(regex(r"(.|\n)*")).start()
    mask = matcher.allowed()
    assert mask[ends].all() and mask.sum() > 100
    assert not mask[special].any() and not mask[-SPARE_ROWS:].any()


def test_a_tokenizer_that_strips_a_leading_space_may_begin_with_one_or_without() -> None:
    assert grammars(LLAMA).compiler.strips_space
    for spelt in (b"yes", b" yes"):
        matcher = grammars(LLAMA).compile(regex("ye?s")).start()
        ids = spell(spelt, LLAMA)
        for token in ids:
            matcher.accept(token)
        assert matcher.is_finished and text_of(ids, LLAMA) == "yes"


def test_a_tokenizer_that_keeps_spaces_may_not_begin_with_one() -> None:
    assert not grammars("shipped").compiler.strips_space
    mask = grammars("shipped").compile(regex("ye?s")).start().allowed()
    first_bytes = {
        grammars("shipped").compiler.tokenizer.decode_bytes([i])[:1]
        for i in mask.nonzero().flatten().tolist()
    }
    assert first_bytes == {b"y"}


# ---- a matcher's life


def test_greedy_follows_its_bias_as_far_as_the_choices_go() -> None:
    name, wanted = "tiny", "no, never"
    logits = torch.zeros(len(grammars(name).alphabet.is_text))
    matcher, ids = grammars(name).compile(choices("yes", "no", "no, never")).start(), []
    while not matcher.is_finished:
        biased = logits.clone()
        biased[spell(wanted.encode(), name)[len(ids)]] = 1  # a fake model that wants to say this
        ids.append(int(biased.masked_fill(~matcher.allowed(), -torch.inf).argmax()))
        matcher.accept(ids[-1])
    assert text_of(ids, name) == wanted


def test_an_end_is_allowed_exactly_where_the_answer_may_end() -> None:
    name = "shipped"
    alphabet = grammars(name).alphabet
    matcher = grammars(name).compile(regex("a{2,3}")).start()
    seen = []
    for token in spell(b"a", name) * 3:
        seen.append((bool(matcher.allowed()[alphabet.end_ids].all()), matcher.is_finished))
        matcher.accept(token)
    seen.append((bool(matcher.allowed()[alphabet.end_ids].all()), matcher.is_finished))
    assert seen == [(False, False), (False, False), (True, False), (True, True)]


def test_every_end_token_ends_an_answer() -> None:
    ends = grammars("shipped").alphabet.end_ids
    assert len(ends) == 2
    for end in ends:
        matcher = grammars("shipped").compile(regex("a*")).start()
        matcher.accept(end)
        assert matcher.is_finished
        assert matcher.allowed().nonzero().flatten().tolist() == sorted(ends)


def test_an_empty_answer_is_finished_at_once() -> None:
    assert grammars("shipped").compile(regex("")).start().is_finished


def test_a_token_that_is_not_allowed_raises_and_changes_nothing() -> None:
    matcher = grammars("tiny").compile(regex("ab")).start()
    before = matcher.allowed()
    for token in (*spell(b"b", "tiny"), *grammars("tiny").alphabet.end_ids):
        with pytest.raises(ValueError, match="not allowed"):
            matcher.accept(token)
    assert torch.equal(matcher.allowed(), before)


def test_forks_go_their_own_ways() -> None:
    name = "tiny"
    matcher = grammars(name).compile(choices("cat", "cow", "dog")).start()
    matcher.accept(*spell(b"c", name))
    other = matcher.fork()
    before = other.allowed()
    matcher.accept(*spell(b"a", name))
    assert torch.equal(other.allowed(), before)
    other.accept(*spell(b"o", name))
    matcher.accept(*spell(b"t", name))
    assert matcher.is_finished and not other.is_finished
    other.accept(*spell(b"w", name))
    assert other.is_finished


@given(seed=st.integers(0, 2**32 - 1))
def test_a_fork_sees_what_a_matcher_with_its_history_sees(seed: int) -> None:
    """And so does every other matcher of the grammar, whatever its neighbours did meanwhile."""
    name, random = "shipped", torch.Generator().manual_seed(seed)
    grammar = grammars(name).compile(regex("[a-d]{1,4}( [a-d]{1,4}){2}"))
    live: list[tuple[Matcher, list[int]]] = [(grammar.start(), [])]
    for _ in range(12):
        matcher, history = live[int(torch.randint(len(live), (), generator=random))]
        if matcher.is_finished:
            continue
        live.append((matcher.fork(), list(history)))
        token = pick(matcher.allowed(), name, random)
        matcher.accept(token)
        history.append(token)
    for matcher, history in live:
        again = grammar.start()
        for token in history:
            again.accept(token)
        assert torch.equal(matcher.allowed(), again.allowed())


def test_a_mask_written_over_by_its_owner_leaks_nowhere() -> None:
    grammar = grammars("tiny").compile(regex("ab"))
    matcher = grammar.start()
    fork = matcher.fork()
    before = matcher.allowed().clone()
    matcher.allowed().fill_(True)
    fork.allowed().fill_(True)
    for other in (matcher, fork, grammar.start()):
        assert torch.equal(other.allowed(), before)


def test_a_text_that_the_vocabulary_cannot_spell_is_an_error() -> None:
    words = Tokenizer.from_str(tiny_tokenizer().to_str())
    matcher = Grammars(words, words.get_vocab_size(), [0]).compile(regex("x")).start()
    matcher._alphabet.is_text[words.token_to_id("x")] = False
    with pytest.raises(ConstraintError, match="cannot spell"):
        matcher.allowed()


# ---- compiling


def test_a_constraint_is_compiled_once_while_it_is_among_the_last_used() -> None:
    few = Grammars(tiny_tokenizer(), 264, [0], max_cached=2)
    a, b, c = map(regex, "abc")
    first = few.compile(a)
    few.compile(b)
    assert few.compile(a) is first and few.find(b) is not None
    few.compile(c)
    few.compile(b)  # the least lately used, b, has gone and come back; a went for it
    assert few.find(a) is None and few.find(b) is not None and few.find(c) is not None


def test_a_constraint_that_grows_too_complex_is_an_error_of_that_answer_alone() -> None:
    grammar = grammars("shipped").compile(regex(r"(.|\n)*a(.|\n){2000}"))
    with pytest.raises(ConstraintError, match="too complex"):
        answer(grammar.start(), "shipped", seed=0, limit=3000)
    assert grammars("shipped").compile(regex("ok")).start().allowed().any()

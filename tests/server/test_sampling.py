"""Logits → a token, by the rules of its own request."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flamingo_server.engine.request import Sampling, TokenLogprob
from flamingo_server.engine.sampling import (
    NotFiniteError,
    NothingAllowedError,
    Rules,
    choose_token,
    repeated_next,
)

STOP, IMAGE, SPARE = 0, 2, 9
BANNED = [IMAGE, SPARE]


@dataclass
class Chooser:
    """What `choose_token` needs to know of one choice."""

    rules: Rules
    prompt: list[int]
    dice: random.Random
    answer: list[int] = field(default_factory=list)


def chooser(prompt: list[int] | None = None, seed: int = 0, **rules: Any) -> Chooser:
    sampling = Sampling(**{"temperature": 1.0, **rules})
    return Chooser(
        Rules(sampling, torch.tensor(BANNED), [STOP]), prompt or [1], random.Random(seed)
    )


def choose_with(
    logits: Tensor, given: Chooser, allowed: Tensor | None = None
) -> tuple[int, TokenLogprob | None]:
    return choose_token(logits, given.rules, given.prompt, given.answer, given.dice, allowed)


def choose(logits: Tensor, given: Chooser, allowed: Tensor | None = None) -> int:
    return choose_with(logits, given, allowed)[0]


def logits(**chances: float) -> Tensor:
    """Probabilities by token, as `t3=0.5`; others get next to nothing."""
    values = torch.full((10,), -30.0)
    for name, chance in chances.items():
        values[int(name[1:])] = math.log(chance)
    return values


def drawn(values: Tensor, times: int = 200, **rules: Any) -> set[int]:
    given = chooser(**rules)
    return {choose(values, given) for _ in range(times)}


FOUR = logits(t3=0.5, t4=0.3, t5=0.15, t6=0.05)


def test_temperature_zero_takes_the_most_likely() -> None:
    assert drawn(FOUR, temperature=0.0) == {3}


def test_the_smallest_temperature_is_as_good_as_zero() -> None:
    assert drawn(FOUR, temperature=1e-320) == {3}


def test_a_draw_follows_the_probabilities() -> None:
    given = chooser(seed=1)
    counts = Counter(choose(FOUR, given) for _ in range(2000))
    assert set(counts) == {3, 4, 5, 6}
    assert 900 < counts[3] < 1100 and 530 < counts[4] < 670


def test_the_same_seed_draws_the_same_tokens() -> None:
    first, again, other = chooser(seed=7), chooser(seed=7), chooser(seed=8)
    draws = [[choose(FOUR, s) for _ in range(40)] for s in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]


def test_what_others_draw_changes_nothing() -> None:
    alone, beside, neighbour = chooser(seed=3), chooser(seed=3), chooser(seed=4)
    expected = [choose(FOUR, alone) for _ in range(20)]
    found = []
    for _ in range(20):
        choose(FOUR, neighbour)
        found.append(choose(FOUR, beside))
    assert found == expected


def test_top_k_leaves_the_k_most_likely() -> None:
    assert drawn(FOUR, top_k=2) == {3, 4}


def test_top_k_beyond_the_vocabulary_is_no_limit() -> None:
    assert drawn(FOUR, top_k=10**30) == {3, 4, 5, 6}


def test_top_p_keeps_the_token_that_crosses_the_line() -> None:
    assert drawn(FOUR, top_p=0.6) == {3, 4}
    assert drawn(FOUR, top_p=1e-9) == {3}


def test_min_p_is_relative_to_the_most_likely() -> None:
    assert drawn(FOUR, min_p=0.4) == {3, 4}
    assert drawn(FOUR, min_p=1.0) == {3}


def test_a_repetition_penalty_makes_seen_tokens_less_likely() -> None:
    close = torch.tensor([0.0, 0, 0, 2.0, 1.9, 0, 0, 0, 0, 0])
    assert drawn(close, temperature=0.0, repetition_penalty=1.2) == {3}
    assert drawn(close, temperature=0.0, repetition_penalty=1.2, prompt=[3]) == {4}
    assert drawn(close - 5, temperature=0.0, repetition_penalty=1.2, prompt=[3]) == {4}


def test_no_ngram_repeats_across_prompt_and_answer() -> None:
    given = chooser([5, 3, 7], temperature=0.0, no_repeat_ngram_size=2)
    given.answer = [5]
    assert choose(FOUR, given) == 4  # "5 3" stands in the prompt


@given(st.lists(st.integers(3, 5), max_size=12), st.integers(1, 4))
def test_repeated_next_names_exactly_the_tokens_that_complete_an_ngram(
    history: list[int], size: int
) -> None:
    def ngrams(ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]

    naive = {
        t
        for t in (3, 4, 5)
        if len(history) >= size and ngrams([*history, t])[-1] in ngrams(history)
    }
    assert set(repeated_next(history, size)) == naive


def test_no_stop_token_before_min_tokens() -> None:
    given = chooser(temperature=0.0, min_tokens=1)
    ending = logits(t0=0.9, t4=0.1)
    assert choose(ending, given) == 4
    given.answer = [4]
    assert choose(ending, given) == STOP


RULES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-300, 0.5, 1.0, 100.0]),
        "top_p": st.sampled_from([1e-12, 0.5, 1.0]),
        "top_k": st.integers(0, 12),
        "min_p": st.sampled_from([0.0, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([0.01, 0.5, 1.0, 100.0]),
        "no_repeat_ngram_size": st.integers(0, 2),
        "min_tokens": st.integers(0, 2),
        "logprobs": st.sampled_from([None, 0, 20]),
    }
)
ANY = st.lists(
    st.floats(-(2**99), 2**99, width=32, allow_subnormal=False), min_size=10, max_size=10
)


@given(ANY, RULES)
def test_no_image_and_no_spare_token_is_ever_chosen(
    values: list[float], rules: dict[str, Any]
) -> None:
    given = chooser([1, IMAGE, 3], **rules)
    assert choose(torch.tensor(values), given) not in BANNED


def only(*ids: int) -> Tensor:
    allowed = torch.zeros(10, dtype=torch.bool)
    allowed[list(ids)] = True
    return allowed


@given(ANY, RULES, st.sets(st.sampled_from([3, 4, 5]), min_size=1))
def test_nothing_that_a_grammar_forbids_is_ever_chosen(
    values: list[float], rules: dict[str, Any], ids: set[int]
) -> None:
    assert choose(torch.tensor(values), chooser(**rules), only(*ids)) in ids


@pytest.mark.parametrize(
    ("rules", "ids"), [({"min_tokens": 1}, [STOP]), ({"no_repeat_ngram_size": 1}, [1])], ids=str
)
def test_rules_that_leave_no_token_say_so(rules: dict[str, Any], ids: list[int]) -> None:
    with pytest.raises(NothingAllowedError):
        choose(FOUR, chooser(**rules), only(*ids))


@given(ANY)
def test_the_short_way_of_a_plain_request_takes_what_the_long_one_takes(
    values: list[float],
) -> None:
    plain, asked = chooser(temperature=0.0), chooser(temperature=0.0, logprobs=0)
    assert choose(torch.tensor(values), plain) == choose(torch.tensor(values), asked)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_raise(bad: float) -> None:
    values = FOUR.clone()
    values[8] = bad
    with pytest.raises(NotFiniteError):
        choose(values, chooser())


def test_large_logits_are_finite_though_their_squares_are_not() -> None:
    values = FOUR.clone()
    values[8] = 1e30
    assert choose(values, chooser(temperature=0.0)) == 8


def test_logits_are_left_as_they_were() -> None:
    before = FOUR.clone()
    choose(FOUR, chooser(repetition_penalty=2.0, no_repeat_ngram_size=1, prompt=[3]))
    assert torch.equal(FOUR, before)


def test_logprobs_are_of_the_model_itself_before_any_rule() -> None:
    given = chooser(temperature=0.0, logprobs=2, repetition_penalty=50.0, prompt=[3])
    token, found = choose_with(logits(t3=0.75, t4=0.25), given)
    assert found is not None and found.token_id == token
    assert [id for id, _ in found.top] == [3, 4]
    assert [round(math.exp(p), 3) for _, p in found.top] == [0.75, 0.25]


def test_banned_tokens_take_no_share_of_the_logprobs() -> None:
    given = chooser(temperature=0.0, logprobs=3)
    _, found = choose_with(logits(t2=0.5, t3=0.3, t4=0.2), given)
    assert found is not None
    assert [round(math.exp(p), 3) for _, p in found.top[:2]] == [0.6, 0.4]


def test_no_logprobs_unless_asked_for() -> None:
    assert choose_with(FOUR, chooser())[1] is None

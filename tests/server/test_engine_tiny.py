"""The engine with a real network, random and tiny: batching and caches change no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import Answer, drive, step, submit
from flamingo_model.cross_attention import GatedCrossAttention
from flamingo_model.flamingo import Flamingo
from flamingo_model.paged_attention import Batch
from flamingo_server.engine.blocks import BlockPool
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.request import Ended, Prompt, Sampling, Started, Usage
from flamingo_server.errors import EngineFailure
from tiny_engines import KINDS, alone, ask, new_engine, prompt, same, whole

GREEDY_OR_SEEDED = pytest.mark.parametrize(
    "rules", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "seeded"]
)


def usage(answer: Answer) -> Usage:
    [started] = [e for e in answer.events if isinstance(e, Started)]
    return started.usage


def blocks_of(engine: Engine) -> list[list[int]]:
    return [s.blocks for r in engine.scheduler.running for s in r.sequences]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_what_the_network_gives_without_a_cache(kind: str) -> None:
    engine, asked = (
        new_engine(kind),
        [(text, seeds) for text in ("what", "w") for seeds in ((0, 1, 2), (), (0,), (3, 0))],
    )
    answers = list[Answer]()
    for text, seeds in asked:  # of unequal numbers of pictures, decoded together
        answers.append(ask(engine, text, *seeds))
        step(engine)
    drive(engine)
    banned = [*engine.banned, *engine.stop_ids]
    for (text, seeds), answer in zip(asked, answers, strict=True):
        logprobs = whole(kind, prompt(text, *seeds), answer.token_ids())[-13:-1]
        logprobs[:, engine.banned] = -torch.inf
        logprobs = logprobs.log_softmax(-1)
        expected = [row[t] for row, t in zip(logprobs, answer.token_ids(), strict=True)]
        assert np.allclose(answer.logprobs(), expected, atol=1e-4)
        logprobs[:, banned] = -torch.inf
        assert answer.token_ids() == logprobs.argmax(-1).tolist()


@GREEDY_OR_SEEDED
def test_alone_and_beside_31_others_are_the_same(rules: dict[str, Any]) -> None:
    engine, answers = new_engine(num_media_slots=6), list[Answer]()
    for i in range(32):
        answers.append(ask(engine, "ab" * (i % 8) or "c", *range(i % 4), **rules))
        if i % 3 == 0:
            step(engine)
    drive(engine)
    for i, answer in enumerate(answers[:8]):
        assert same(answer, alone("ab" * i or "c", *range(i % 4), **rules))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_prefix_answers_as_a_cold_one(kind: str) -> None:
    engine, cold = new_engine(kind), alone("what", 0, 1, 2, kind=kind)
    for _ in range(2):
        answer = ask(engine, "what", 0, 1, 2)
        drive(engine)
        assert same(answer, cold)
    assert usage(answer).cached_prompt_tokens == usage(answer).prompt_tokens - 1 == 17


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_shared_within_one_step_answers_as_alone(kind: str) -> None:
    engine, ends = new_engine(kind), ["", "!", "no", "yes sir"]
    answers = [ask(engine, "what", 0, 1, end=end) for end in ends]
    step(engine)
    first = {tuple(blocks[:3]) for blocks in blocks_of(engine)}
    assert len(first) == 1 and engine.num_steps == 1
    drive(engine)
    for end, answer in zip(ends, answers, strict=True):
        assert same(answer, alone("what", 0, 1, end=end, kind=kind))
    assert usage(answers[-1]).cached_prompt_tokens == 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, 5])
def test_a_prompt_in_chunks_answers_as_a_whole_one(kind: str, budget: int) -> None:
    engine, asked = new_engine(kind, max_step_tokens=budget), [("what", (0, 1)), ("or", (2,))]
    answers = [ask(engine, text, *seeds) for text, seeds in asked]
    drive(engine)
    for (text, seeds), answer in zip(asked, answers, strict=True):
        assert same(answer, alone(text, *seeds, kind=kind))


@pytest.mark.parametrize("kind", KINDS)
def test_displaced_requests_answer_as_others(kind: str) -> None:
    engine = new_engine(kind, num_blocks=16)
    asked: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("what", (0, 1), {}),
        ("is", (2,), {"n": 2}),
        ("this", (1, 2), {"temperature": 1.0, "seed": 5}),
        ("what", (0, 1), {"end": "?"}),
    ]
    answers = [ask(engine, text, *seeds, **rules) for text, seeds, rules in asked]
    drive(engine)
    assert engine.scheduler.num_preemptions > 1
    for (text, seeds, rules), answer in zip(asked, answers, strict=True):
        assert same(answer, alone(text, *seeds, kind=kind, **{**rules, "n": 1}))
    assert answers[1].token_ids(0) == answers[1].token_ids(1)


def test_a_higher_priority_displaces_and_both_answer_as_alone() -> None:
    engine = new_engine(max_running=1)
    low = ask(engine, "low", 0)
    step(engine, 5)
    high = ask(engine, "high", 1, priority=1)
    step(engine)
    assert high.events and engine.scheduler.num_preemptions == 1
    drive(engine)
    assert same(low, alone("low", 0)) and same(high, alone("high", 1))


def from_both_ends(pool: BlockPool, num: int, after: int = 0) -> list[int]:
    """In place of `allocate`: no two are neighbours while there is a choice."""
    while len(pool.free) < num:
        pool.evict()
    taken = list[int]()
    for number in range(num):
        taken.append(min(pool.free) if number % 2 else max(pool.free))
        pool.free.remove(taken[-1])
    pool.references.update(dict.fromkeys(taken, 1))
    return taken


@pytest.mark.parametrize("kind", KINDS)
def test_scattered_blocks_answer_as_neighbours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone("what " * 9, 0, end=end, kind=kind) for end in ("", "!")]
    monkeypatch.setattr(BlockPool, "allocate", from_both_ends)
    engine = new_engine(kind)
    answers = [ask(engine, "what " * 9, 0, end=end) for end in ("", "!")]
    step(engine)
    assert not any(b == a + 1 for blocks in blocks_of(engine) for a, b in pairwise(blocks[:9]))
    drive(engine)
    assert all(map(same, answers, expected))


@pytest.mark.parametrize("kind", KINDS)
def test_all_choices_go_on_from_one_prompt(kind: str) -> None:
    engine = new_engine(kind)
    answer = ask(engine, "what", 1, n=3)
    drive(engine)
    assert all(same(answer, alone("what", 1, kind=kind), i) for i in range(3))


def test_choices_differ_by_their_own_dice_and_repeat_with_the_seed() -> None:
    rules: dict[str, Any] = {"n": 4, "temperature": 1.5, "seed": 9}
    first, again = alone("what", 1, **rules), alone("what", 1, **rules)
    texts = [first.token_ids(i) for i in range(4)]
    assert texts == [again.token_ids(i) for i in range(4)]
    assert len({tuple(ids) for ids in texts}) == 4


# ---- what is never shared


@pytest.mark.parametrize("kind", ["tiny", "sees-all"])
@pytest.mark.parametrize("seeds", [(0, 2), (2, 1), (1, 0), (2, 0)])
def test_equal_tokens_with_other_pictures_share_nothing_behind_them(
    kind: str, seeds: tuple[int, ...]
) -> None:
    engine, base = new_engine(kind, block_size=1), (0, 1)
    ask(engine, "what", *base)
    drive(engine)
    answer = ask(engine, "what", *seeds)
    drive(engine)
    assert same(answer, alone("what", *seeds, kind=kind))
    assert not same(answer, alone("what", *base, kind=kind))
    assert usage(answer).cached_prompt_tokens == (6 if seeds[0] == base[0] else 0)


def test_tenants_share_nothing() -> None:
    engine = new_engine()
    for salt, cached in ((None, 0), ("a", 0), ("b", 0), ("a", 11), (None, 11)):
        answer = ask(engine, "what", 0, 1, salt=salt)
        drive(engine)
        assert usage(answer).cached_prompt_tokens == cached


def test_what_was_generated_blind_is_no_prefix_of_what_looks() -> None:
    """An answer whose tokens see no picture, then a prompt of the same tokens that do."""
    engine = new_engine(block_size=1)
    blind = replace(prompt("what", 0), generated_media=-1)
    first = submit(engine, blind, Sampling(max_tokens=8, min_tokens=8))
    drive(engine)
    ids = [*blind.token_ids, *first.token_ids()]
    looks = Prompt(ids, [0] * len(ids), blind.media)
    answer = submit(engine, looks, Sampling(max_tokens=1))
    drive(engine)
    assert usage(answer).cached_prompt_tokens == len(blind.token_ids)


# ---- pictures


class Counts:
    """How often the network did what, and which slots its decoding tokens read."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded, self.projected = list[int](), list[int]()
        model: Flamingo = engine.runner.model
        encode, self.num_blocks = model.encode_media, len(model.blocks())

        def count_encode(pixels: Tensor) -> Tensor:
            self.encoded.append(len(pixels))
            return encode(pixels)

        def counted(block: GatedCrossAttention) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
            project = block.project_media

            def count_project(latents: Tensor) -> tuple[Tensor, Tensor]:
                self.projected.append(len(latents))
                return project(latents)

            return count_project

        monkeypatch.setattr(model, "encode_media", count_encode)
        for block in model.blocks():
            monkeypatch.setattr(block, "project_media", counted(block))


def test_no_picture_is_projected_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine()
    counts = Counts(engine, monkeypatch)
    ask(engine, "what", 0, 1, n=2)
    step(engine)
    assert counts.projected == [2] * counts.num_blocks
    drive(engine)
    assert counts.projected == [2] * counts.num_blocks and counts.encoded == [2]


def test_new_pictures_of_many_requests_are_encoded_in_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = new_engine()
    counts = Counts(engine, monkeypatch)
    for seeds in ((0, 1), (1, 2), (3,)):
        ask(engine, "what", *seeds)
    drive(engine)
    assert counts.encoded == [4] and counts.projected == [4] * counts.num_blocks


def test_pictures_of_a_cached_prefix_are_neither_encoded_nor_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = new_engine(num_media_slots=3, latents_bytes=0, block_size=1)
    shots, cold = (0, 1, 2), alone("what", 0, 1, 2, end="now")
    counts = Counts(engine, monkeypatch)
    ask(engine, "what", *shots)
    drive(engine)
    ask(engine, "other", 3, 4)  # the slots of the first two are given away
    drive(engine)
    assert set(engine.media.slot_of) == {"2", "3", "4"} and counts.encoded == [3, 2]
    answer = ask(engine, "what", *shots, end="now")
    step(engine)
    [request] = engine.scheduler.running
    assert request.slots.keys() == {2} and engine.media.pins == {"2": 1}
    drive(engine)
    assert counts.encoded == [3, 2] and same(answer, cold)
    assert usage(answer).cached_media == 3


@pytest.mark.parametrize("kind", ["tiny", "sees-all"])
def test_decoding_reads_only_the_slots_it_sees(kind: str) -> None:
    """All other slots hold NaN, which would show."""
    engine, expected = new_engine(kind, num_media_slots=8), alone("what", 0, 1, 2, kind=kind)
    answer = ask(engine, "what", 0, 1, 2)
    step(engine)
    [request] = engine.scheduler.running
    seen = {request.slots[2]} if kind == "tiny" else set(request.slots.values())
    for cache in (engine.runner.slots.k, engine.runner.slots.v):
        cache[:, [slot for slot in range(8) if slot not in seen]] = torch.nan
    drive(engine)
    assert same(answer, expected)


def test_decoding_takes_one_slot_a_token_however_many_shots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, widths = new_engine(), Counter[tuple[int, ...]]()
    prepare = engine.runner.prepare

    def spy(chunks: Any) -> Batch:
        batch = prepare(chunks)
        widths[tuple(batch.media_slots.shape)] += 1
        return batch

    monkeypatch.setattr(engine.runner, "prepare", spy)
    ask(engine, "what", *range(5))
    drive(engine)
    assert set(widths) == {(0,), (1,)}


def test_the_last_picture_matters() -> None:
    assert not same(alone("what", 0, 1), alone("what", 0, 2))


def test_a_warm_picture_answers_as_a_cold_one() -> None:
    engine = new_engine(num_media_slots=2)
    for seeds in ((1,), (2, 3), (1,), (3, 1)):  # hits, evictions, latents kept
        answer = ask(engine, "what", *seeds)
        drive(engine)
        assert same(answer, alone("what", *seeds))


# ---- the prompt's own log-probabilities


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", [{"max_step_tokens": 5}, {"num_blocks": 13}], ids=str)
@pytest.mark.parametrize("rules", [{}, {"num_beams": 2}], ids=["sampled", "beams"])
def test_prompt_logprobs_are_those_of_a_whole_pass(
    kind: str, limits: dict[str, int], rules: dict[str, Any]
) -> None:
    engine = new_engine(kind, **limits)
    ask(engine, "what", 0, end="is")  # a prefix that must not be taken
    drive(engine)
    other = ask(engine, "else", 1, max_tokens=20)
    step(engine, 3)
    answer = ask(engine, "what", 0, end="is it?", prompt_logprobs=2, max_tokens=3, **rules)
    drive(engine)
    asked = prompt("what", 0, end="is it?")
    expected = whole(kind, asked, [])
    [started] = [e for e in answer.events if isinstance(e, Started)]
    assert started.prompt_logprobs is not None and started.prompt_logprobs[0] is None
    assert len(started.prompt_logprobs) == len(asked.token_ids) and other.has_ended
    for place, found in enumerate(started.prompt_logprobs[1:], 1):
        assert found is not None and found.token_id == asked.token_ids[place]
        assert abs(found.logprob - float(expected[place - 1, found.token_id])) < 1e-4
        assert np.allclose([p for _, p in found.top], expected[place - 1].topk(2).values, atol=1e-4)


def test_prompt_logprobs_after_a_displacement_are_complete() -> None:
    engine = new_engine(max_step_tokens=5, max_running=1)
    answer = ask(engine, "what", 0, end="is it?", prompt_logprobs=0)
    step(engine, 2)
    ask(engine, "urgent", priority=1)
    drive(engine)
    [started] = [e for e in answer.events if isinstance(e, Started)]
    asked = prompt("what", 0, end="is it?")
    expected = whole("tiny", asked, [])[:-1].gather(1, torch.tensor(asked.token_ids[1:])[:, None])
    found = [t.logprob for t in (started.prompt_logprobs or [])[1:] if t]
    assert engine.scheduler.num_preemptions == 1
    assert np.allclose(found, expected.flatten(), atol=1e-4)


# ---- nothing is left behind


def test_a_request_that_ended_in_nan_leaves_no_trace_in_its_blocks() -> None:
    engine = new_engine(max_running=2, num_blocks=40, is_poisoned=True)
    bad = ask(engine, "~" * 60, n=2)
    drive(engine)
    short, long = ask(engine, "short", max_tokens=30), ask(engine, "long" * 10)
    drive(engine)
    assert isinstance(bad.events[-1], EngineFailure)
    assert same(short, alone("short", max_tokens=30)) and same(long, alone("long" * 10))


def test_usage_at_the_end_counts_what_was_cached() -> None:
    engine = new_engine()
    ask(engine, "what", 0)
    drive(engine)
    answer = ask(engine, "what", 0, end="!")
    drive(engine)
    ended = answer.events[-1]
    assert isinstance(ended, Ended) and ended.usage.cached_prompt_tokens == 6
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (7, 12)
    assert engine.stats().cached_tokens == 6

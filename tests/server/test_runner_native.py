"""Our C kernels in a runner: torch's answers, and bits that do not depend on the company."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fakes import TOKENIZER, Answer, drive, step
from flamingo_model.decode_graph import DecodeRow
from flamingo_model.flamingo import Flamingo
from flamingo_model.native_attention import NativeCrossAttention, NativeSelfAttention
from flamingo_model.native_decode import NativeDecoding
from flamingo_model.packing import pack_model
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.runner import Runner
from flamingo_server.engine.scheduler import Plan
from our_kernels import needs_kernels, switch_off
from tiny_engines import KINDS, ask, network, new_engine, rank, same

pytestmark = [
    needs_kernels,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a runner on a GPU has other kernels"),
]
LIMITS = EngineLimits(max_running=40, max_length=128, num_blocks=300, block_size=4)
CANDIDATES = [[5, 6, 7], [5, 6], [9], [5, 8, 9, 10, 11, 12]]
TEXTS = ["what", "is it", "", "a longer question than the others", "who", "why not", "x", "how"]


def packed(kind: str) -> Flamingo:
    model = copy.deepcopy(network(kind))
    pack_model(model, "float32")
    return model


class NotingRunner(Runner):
    """Keeps the logits behind every token that was asked for them, by the tokens up to it."""

    def __init__(self, model: Flamingo) -> None:
        super().__init__(model, LIMITS)
        self.logits, self.most_decoding = dict[tuple[int, ...], Tensor](), 0

    def step(self, plan: Plan) -> Tensor:
        found, chunks = super().step(plan), plan.in_order()
        self.most_decoding = max(self.most_decoding, sum(c.is_decode for c in chunks))
        wanted = [(c.sequence, place) for c in chunks for place in c.wanted]
        for (sequence, place), row in zip(wanted, found, strict=True):
            self.logits[tuple(sequence.tokens[: place + 1])] = row.clone()
        return found


def mixed_answers(model: Flamingo) -> list[Answer]:
    """Plain requests, beams, choices and candidates that come while others are decoded."""
    engine = new_engine(model=model)
    found = list[Answer]()
    for num, rules in enumerate(
        [{}, {"num_beams": 3}, {"n": 2, "temperature": 1.0, "seed": 4}, {}, {"num_beams": 2}]
    ):
        found.append(ask(engine, TEXTS[num], *range(num % 3), **rules))
        step(engine, 2)
    found.append(rank(engine, CANDIDATES, "which of them?", 0))
    drive(engine)
    assert all(answer.names[-1] == "Ended" for answer in found)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "packed"])
def test_our_kernels_give_the_answers_of_torchs(
    kind: str, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model() -> Flamingo:
        return packed(kind) if is_packed else network(kind)

    found = mixed_answers(model())
    switch_off(monkeypatch)
    expected = mixed_answers(model())
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert len(one.token_ids()) == 12 and same(one, other)
    assert torch.allclose(scores(found[-1]), scores(expected[-1]), atol=1e-4)


def scores(answer: Answer) -> Tensor:
    return torch.tensor([sum(each) for each in answer.scores()])


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_alone_and_among_eight_gives_the_same_bits(kind: str) -> None:
    model = packed(kind)
    together = NotingRunner(model)
    engine = Engine(model.config, together, TOKENIZER, LIMITS)
    for num in range(8):
        ask_number(engine, num)
        step(engine)  # no two are asked at once: torch's tower counts the pictures it is given
    drive(engine)
    assert together.most_decoding == 8
    for num in range(8):
        alone = NotingRunner(model)
        engine = Engine(model.config, alone, TOKENIZER, LIMITS)
        ask_number(engine, num)
        drive(engine)
        assert len(alone.logits) == 20
        for tokens, logits in alone.logits.items():
            assert torch.equal(together.logits[tokens], logits)


def ask_number(engine: Engine, num: int) -> None:
    """With pictures of its own: none, one or two."""
    pictures = range(10 * num, 10 * num + num % 3)
    ask(engine, TEXTS[num], *pictures, end="?", max_tokens=20, min_tokens=20)


class CountingDecoding(NativeDecoding):
    """Notes how many rows each run had."""

    def run(self, rows: Sequence[DecodeRow]) -> Tensor:
        self.seen = [*getattr(self, "seen", []), len(rows)]
        return super().run(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_that_only_decode_are_recorded_and_change_no_bit(kind: str) -> None:
    model, found = packed(kind), list[dict[tuple[int, ...], Tensor]]()
    for is_recorded in (True, False):
        runner = NotingRunner(model)
        sizes = LIMITS.max_running, LIMITS.blocks_for(LIMITS.max_length)
        decoding = CountingDecoding(model, runner.blocks, runner.slots, *sizes)
        assert type(runner.decoding) is NativeDecoding
        runner.decoding = decoding if is_recorded else None
        engine = Engine(model.config, runner, TOKENIZER, LIMITS)
        for num in range(4):
            ask_number(engine, num)
            step(engine, 3)
        drive(engine)
        found.append(runner.logits)
        assert not is_recorded or {1, 2, 3, 4} <= set(decoding.seen)
    one, other = found
    assert len(one) == 80 and one.keys() == other.keys()
    assert all(torch.equal(one[tokens], other[tokens]) for tokens in one)


def test_a_prompt_that_comes_token_by_token_gives_the_answer_of_one_that_comes_whole() -> None:
    """Of all its steps, which are recorded, only the last one's logits are wanted."""
    model, found = packed("tiny"), list[Answer]()
    for limits in (LIMITS, replace(LIMITS, max_step_tokens=1)):
        runner = NotingRunner(model)
        engine = Engine(model.config, runner, TOKENIZER, limits)
        found.append(ask(engine, "what is it", 0, 1, max_tokens=12, min_tokens=12))
        drive(engine)
        assert len(runner.logits) == 12
    assert same(*found)


def test_the_runner_takes_ours_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(runner: Runner) -> list[bool]:
        batch = runner.prepare([])
        attends = runner.self_attention(batch), runner.cross_attention(batch)
        return [isinstance(x, NativeSelfAttention | NativeCrossAttention) for x in attends]

    runner = Runner(network(), LIMITS)
    assert kinds(runner) == [True, True] and runner.decoding is None
    assert kinds(Runner(network(dtype=torch.bfloat16), LIMITS)) == [False, False]
    switch_off(monkeypatch)
    assert kinds(runner) == [False, False]
    assert Runner(packed("tiny"), LIMITS).decoding is None

"""A runner as it is on a GPU, but on a CPU: tables and graphs change no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import IMAGE, TOKENIZER, Answer, drive, step, submit, text_ids
from flamingo_model.config import FlamingoConfig
from flamingo_model.cross_attention import visible_media
from flamingo_model.decode_graph import DecodeGraphs, DecodeRow
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from flamingo_server.engine.scheduler import Chunk
from tiny import tiny_config, tiny_model

LIMITS = EngineLimits(max_running=6, max_length=96, num_blocks=300, block_size=4)


class CountingGraphs(DecodeGraphs):
    """Notes how many rows each run had."""

    def run(self, rows: list[DecodeRow]) -> Tensor:
        self.seen = [*getattr(self, "seen", []), len(rows)]
        return super().run(rows)


class CheckedRunner(Runner):
    """Runs every step of a graph eagerly, too, and compares."""

    tolerance, num_replayed = 0.0, 0

    def forward(self, chunks: list[Chunk]) -> Tensor:
        found = super().forward(chunks)
        self.decoding, decoding = None, self.decoding
        eager = super().forward(chunks)
        self.decoding = decoding
        torch.testing.assert_close(found, eager, rtol=self.tolerance, atol=self.tolerance)
        self.num_replayed += all(chunk.is_decode for chunk in chunks)
        return found


def make_engine(runner: Runner) -> Engine:
    return Engine(runner.model.config, runner, TOKENIZER, LIMITS)


def plain_engine(config: FlamingoConfig) -> Engine:
    return make_engine(Runner(tiny_model(config=config), LIMITS))


def gpu_like_engine(config: FlamingoConfig, max_blocks: int = 24) -> Engine:
    """Its attention gathers, where a GPU's has kernels."""
    model, sizes = tiny_model(config=config), (LIMITS.max_running, max_blocks)
    runner = CheckedRunner(model, LIMITS)
    runner.is_on_gpu, runner.tolerance = True, 1e-5
    runner.decoding = CountingGraphs(model, runner.blocks, runner.slots, *sizes)
    return make_engine(runner)


def ask(engine: Engine, text: str, num_media: int, **rules: object) -> Answer:
    ids = [id for _ in range(num_media) for id in (IMAGE, *text_ids(text))] or text_ids(text)
    shades = [np.full((1, 16, 16, 3), 60 * i, dtype=np.uint8) for i in range(num_media)]
    media = [Media(shade, str(i)) for i, shade in enumerate(shades)]
    prompt = Prompt(ids, visible_media(ids, IMAGE), media)
    return submit(engine, prompt, Sampling(max_tokens=10, **rules))  # type: ignore[arg-type]


def answers(engine: Engine) -> list[Answer]:
    """Beams, choices and plain requests that come one after the other."""
    found = list[Answer]()
    for num, rules in enumerate(
        [{"num_beams": 3}, {"n": 2, "temperature": 1.0, "seed": 1}, {}, {"min_tokens": 10}, {}]
    ):
        found.append(ask(engine, "what is it " * (1 + num % 3), num % 3, **rules))
        step(engine, 3)
    drive(engine)
    assert all(answer.names[-1] == "Ended" for answer in found)  # no step failed
    return found


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.parametrize("sees_all", [False, True], ids=["last", "all"])
def test_a_gpus_way_gives_the_answers_of_the_portable_one(positions: str, sees_all: bool) -> None:
    config = tiny_config()
    config = replace(
        config,
        decoder=replace(config.decoder, positions=positions),
        cross_attention=replace(config.cross_attention, sees_all_media=sees_all),
    )
    engine = gpu_like_engine(config)
    for found, expected in zip(answers(engine), answers(plain_engine(config)), strict=True):
        assert len(found.token_ids()) > 1 and found.names == expected.names
        for index in range(2):
            assert found.token_ids(index) == expected.token_ids(index)
    assert isinstance(engine.runner.decoding, CountingGraphs)
    assert {1, 2, 3} < set(engine.runner.decoding.seen)


def test_what_no_graph_holds_runs_without_one() -> None:
    engine, config = gpu_like_engine(tiny_config(), max_blocks=3), tiny_config()
    for found, expected in zip(answers(engine), answers(plain_engine(config)), strict=True):
        assert found.token_ids() == expected.token_ids()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str
)
def test_replayed_logits_are_those_of_an_eager_step(dtype: torch.dtype, tolerance: float) -> None:
    runner = CheckedRunner(tiny_model().to("cuda", dtype), LIMITS)
    runner.tolerance = tolerance
    answers(make_engine(runner))
    assert runner.decoding is not None and runner.num_replayed > 10


@pytest.mark.gpu
def test_a_gpu_answers_as_a_cpu_does_in_float32() -> None:
    found = answers(make_engine(Runner(tiny_model().to("cuda"), LIMITS)))
    for one, other in zip(found, answers(plain_engine(tiny_config())), strict=True):
        for index in range(2):
            assert one.token_ids(index) == other.token_ids(index)


def test_on_a_cpu_there_are_no_graphs() -> None:
    runner = plain_engine(tiny_config()).runner
    assert runner.decoding is None and not runner.is_on_gpu

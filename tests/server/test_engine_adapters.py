"""Requests of several adapters in one engine answer as the fused model of each, alone."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from adapters import FLAMINGO, adapter, low_rank, replacements
from fakes import Answer, drive, step, text_ids
from flamingo_model.adapted import adapt
from flamingo_model.adapters import Adapter, fuse
from flamingo_model.checkpoints.writing import StateDict
from flamingo_model.flamingo import Flamingo
from flamingo_model.native_decode import NativeDecoding
from flamingo_model.packing import always_one_kernel, pack_model
from flamingo_server.engine.latents_store import LatentsStore
from flamingo_server.engine.media_loader import MediaLoader
from flamingo_server.engine.request import LoadedAdapter, Started
from our_kernels import needs_kernels
from tiny_engines import KINDS, alone, ask, network, new_engine, rank, same

NAMES = ("pictures", "words", "both")


@cache
def file(kind: str, name: str) -> Adapter:
    model, seed = network(kind), 1 + NAMES.index(name)
    parts = {"pictures": FLAMINGO, "words": ("decoder.head.",), "both": (*FLAMINGO, "vision.")}
    tensors = replacements(model, seed, *parts[name])
    if name != "pictures":
        tensors |= low_rank(model, seed, linears=("q", "v", "up", "down"))
    return adapter(model, tensors)


@cache
def fused(kind: str, name: str) -> Flamingo:
    model = deepcopy(network(kind))
    fuse(model, file(kind, name))
    return model


def loaded(name: str, kind: str = "tiny", generation: int = 0) -> LoadedAdapter:
    base = network(kind)
    view = adapt(base, StateDict(base), file(kind, name), None)
    return LoadedAdapter(name, generation or 1 + NAMES.index(name), view)


def everyone(kind: str = "tiny") -> list[LoadedAdapter | None]:
    return [*(loaded(name, kind) for name in NAMES), None]


def expected(kind: str, who: LoadedAdapter | None, text: str, *seeds: int, **rules: Any) -> Answer:
    model = fused(kind, who.name) if who else None
    return alone(text, *seeds, kind=kind, model=model, **rules)


def cached_tokens(answer: Answer) -> int:
    [started] = [e for e in answer.events if isinstance(e, Started)]
    return started.usage.cached_prompt_tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rules",
    [{}, {"temperature": 1.0, "seed": 3}, {"num_beams": 3}, {"n": 2}],
    ids=["greedy", "seeded", "beams", "choices"],
)
def test_side_by_side_each_answers_as_its_fused_model_alone(
    kind: str, rules: dict[str, Any]
) -> None:
    engine, asked = new_engine(kind, max_running=64), list[Any]()
    for text, seeds in (("what", (0, 1)), ("w", ()), ("what", (2,))):
        for who in everyone(kind):
            asked.append((who, text, seeds, ask(engine, text, *seeds, adapter=who, **rules)))
        step(engine)
    drive(engine)
    for who, text, seeds, answer in asked:
        alone = expected(kind, who, text, *seeds, **{**rules, "n": 1})
        assert answer.token_ids() == alone.token_ids()
        assert np.allclose(answer.logprobs(), alone.logprobs(), atol=3e-4)
    distinct = {tuple(answer.logprobs()) for *_, answer in asked}
    assert len(distinct) == len(asked)
    assert not any(engine.num_with(who) for who, *_ in asked if who)


@pytest.mark.parametrize("kind", ["tiny", "sees-all"])
def test_candidates_score_as_with_the_fused_model(kind: str) -> None:
    engine, candidates = new_engine(kind), [text_ids(t) for t in ("cat", "car", "dog")]
    answers = [(who, rank(engine, candidates, "what", 0, 1, adapter=who)) for who in everyone(kind)]
    drive(engine)
    for who, answer in answers:
        one = new_engine(kind, model=fused(kind, who.name) if who else None)
        truth = rank(one, candidates, "what", 0, 1)
        drive(one)
        for found, scores in zip(answer.scores(), truth.scores(), strict=True):
            assert np.allclose(found, scores, atol=3e-4)


@pytest.mark.parametrize("limits", [{"max_step_tokens": 5}, {"num_blocks": 60}], ids=str)
def test_chunks_and_displacement_change_nothing(limits: dict[str, int]) -> None:
    engine = new_engine(**limits)
    asked = [(who, ask(engine, "what", 0, 1, adapter=who, prompt_logprobs=0)) for who in everyone()]
    drive(engine)
    for who, answer in asked:
        assert same(answer, expected("tiny", who, "what", 0, 1))


@pytest.mark.parametrize("kernels", ["float32", "int8", "int4"])
def test_packed_models_answer_as_packed_fused_ones(kernels: str) -> None:
    base, weights = deepcopy(network()), StateDict(network())
    pack_model(base, kernels)
    always_one_kernel(base)
    name = "pictures"  # whose language model is the base's, rounded the same way
    view = adapt(base, weights, file("tiny", name), kernels)
    always_one_kernel(view.model)
    whole = deepcopy(fused("tiny", name))
    pack_model(whole, kernels)
    always_one_kernel(whole)
    engine, who = new_engine(model=base), LoadedAdapter(name, 1, view)
    answers = [ask(engine, "what", 0, adapter=a) for a in (who, None, who)]
    drive(engine)
    for answer, model in zip(answers, (whole, base, whole), strict=True):
        truth = alone("what", 0, model=model)
        assert answer.token_ids() == truth.token_ids()
        assert np.allclose(answer.logprobs(), truth.logprobs(), atol=2e-2)


@needs_kernels
@pytest.mark.parametrize("name", ["pictures", "words"])
def test_an_adapters_steps_are_recorded_where_it_leaves_the_layers_alone(name: str) -> None:
    base, weights = deepcopy(network()), StateDict(network())
    pack_model(base, "float32")
    who = LoadedAdapter(name, 1, adapt(base, weights, file("tiny", name), "float32"))
    answers = list[Answer]()
    for is_recorded in (True, False):
        engine = new_engine(model=base)
        if not is_recorded:
            engine.runner.decoding = engine.runner.recorded[who] = None
        answers += [ask(engine, "what", i, adapter=a) for i, a in enumerate((who, None))]
        drive(engine)  # side by side
        answers += [ask(engine, "what", i, adapter=who) for i in range(2)]
        drive(engine)
        has_own = name == "pictures" and is_recorded
        assert isinstance(engine.runner.recorded[who], NativeDecoding) == has_own
    for one, other in zip(answers[:4], answers[4:], strict=True):
        assert one.logprobs() == other.logprobs() and one.token_ids() == other.token_ids()


def test_a_recording_goes_with_its_adapter() -> None:
    runner, who = new_engine().runner, loaded("pictures")
    runner.decoding_with(who)
    assert len(runner.recorded) == 1
    del who
    gc.collect()
    assert len(runner.recorded) == 0


def test_a_deterministic_engine_gives_an_adapter_the_same_numbers_in_any_company() -> None:
    answers = []
    for company in (0, 5):
        engine = new_engine(is_deterministic=True)
        who = loaded("both")
        answers.append(ask(engine, "what", 0, 1, adapter=who))
        for i in range(company):
            ask(engine, "what", i, adapter=[who, loaded("words"), None][i % 3])
        drive(engine)
    assert answers[0].logprobs() == answers[1].logprobs()


def test_bfloat16_runs_side_by_side() -> None:
    base = network("tiny", torch.bfloat16)
    who = LoadedAdapter("both", 1, adapt(base, StateDict(base), file("tiny", "both"), None))
    engine = new_engine(dtype=torch.bfloat16)
    answers = [ask(engine, "what", 0, 1, adapter=a) for a in (who, None)]
    drive(engine)
    assert answers[0].logprobs() != answers[1].logprobs()
    assert all(len(answer.token_ids()) == 12 for answer in answers)


# ---- what is never shared, and what is


def test_no_prefix_is_shared_between_adapters_nor_between_two_loads_of_one() -> None:
    engine, words, again = new_engine(), loaded("words"), loaded("words", generation=9)
    for who, cached in ((words, 0), (None, 0), (again, 0), (words, 11), (again, 11), (None, 11)):
        answer = ask(engine, "what", 0, 1, adapter=who)
        drive(engine)
        assert cached_tokens(answer) == cached
        assert same(answer, expected("tiny", who, "what", 0, 1))


def test_tenants_of_an_adapter_share_nothing() -> None:
    engine, who = new_engine(), loaded("words")
    for salt, cached in ((None, 0), ("a", 0), ("b", 0), ("a", 11)):
        answer = ask(engine, "what", 0, 1, adapter=who, salt=salt)
        drive(engine)
        assert cached_tokens(answer) == cached


def encodes(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen, encode = list[list[str]](), engine.runner.encode

    def counting(media: Any) -> Any:
        seen.append([m.digest for m in media])
        return encode(media)

    monkeypatch.setattr(engine.runner, "encode", counting)
    return seen


def test_pictures_are_encoded_once_for_each_adapter_that_sees_them_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = new_engine()
    seen, adapters = encodes(engine, monkeypatch), everyone()
    for _ in range(2):
        for who in adapters:
            ask(engine, "what", 0, adapter=who)
        drive(engine)
    digests = [digest for call in seen for digest in call]
    assert len(digests) == len(set(digests)) == 3  # "words" sees the base's
    assert "0" in digests


def test_an_adapter_loaded_again_finds_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, under whatever name: digests are those of the content."""
    engine = new_engine()
    seen = encodes(engine, monkeypatch)
    for generation in (1, 2):
        ask(engine, "what", 0, adapter=loaded("both", generation=generation))
        drive(engine)
    assert [len(call) for call in seen if call] == [1]


def test_latents_on_disk_are_kept_apart(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for restart in range(2):
        store, engine = LatentsStore(tmp_path, 10**6), new_engine()
        engine.loader = MediaLoader(engine.runner, engine.media, 10**6, store)
        seen = encodes(engine, monkeypatch)
        asked = [(who, ask(engine, "what", 0, adapter=who)) for who in everyone()]
        drive(engine)
        store.close()
        assert sum(map(len, seen)) == (0 if restart else 3)
        for who, answer in asked:
            assert same(answer, expected("tiny", who, "what", 0))
    assert len(list(tmp_path.iterdir())) == 3


def test_pictures_of_two_adapters_fill_slots_in_one_step() -> None:
    engine, adapters = new_engine(num_media_slots=6), everyone()
    asked = [
        (who, seed, ask(engine, "w", seed, adapter=who)) for seed in (0, 1) for who in adapters
    ]
    drive(engine)
    for who, seed, answer in asked:
        assert same(answer, expected("tiny", who, "w", seed))


# ---- leaving


def test_without_adapters_steps_go_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, steps = new_engine(), list[int]()
    monkeypatch.setattr(engine.runner, "forward_side_by_side", lambda chunks: steps.append(1))
    for who in (None, loaded("words")):  # an adapter that has the batch for itself does, too
        for seed in range(3):
            ask(engine, "what", seed, adapter=who)
        drive(engine)
    assert not steps


def test_a_request_keeps_its_adapter_until_it_ends_and_then_lets_it_go() -> None:
    engine, who = new_engine(), loaded("both")
    answer = ask(engine, "what", 0, 1, adapter=who)
    other = ask(engine, "what", 0, 1)
    step(engine, 3)
    assert engine.num_with(who) == 1
    view = weakref.ref(who.adapted)
    del who
    gc.collect()
    assert view() is not None
    drive(engine)
    assert same(answer, expected("tiny", loaded("both"), "what", 0, 1))
    assert same(other, alone("what", 0, 1))
    answer.handle.request = None  # type: ignore[assignment]
    del answer
    gc.collect()
    assert view() is None


def test_a_cancelled_or_failed_request_is_counted_out() -> None:
    engine, who = new_engine(), loaded("both")
    answer = ask(engine, "what", 0, adapter=who)
    step(engine, 2)
    answer.handle.cancel()
    late = ask(engine, "what", 0, adapter=who, deadline=0.0)
    step(engine)
    drive(engine)
    assert isinstance(late.events[-1], Exception) and not engine.num_with(who)

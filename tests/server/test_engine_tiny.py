"""The engine with a real network, random and tiny: batching and caches change no answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fakes import END_OF_CHUNK, IMAGE, TOKENIZER, Answer, drive, step, submit, text_ids
from flamingo_model.config import FlamingoConfig
from flamingo_model.cross_attention import visible_media
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from flamingo_server.errors import EngineFailure
from forward import dense
from tiny import tiny_config, tiny_model

POISON = text_ids("~")[0]
RULES = {"max_tokens": 12, "min_tokens": 12, "logprobs": 0}


def new_engine(config: FlamingoConfig | None = None, **limits: int) -> Engine:
    """One whose network gives NaN for a `~`."""
    defaults = {"max_running": 16, "max_length": 96, "num_blocks": 300, "block_size": 4}
    sizes = EngineLimits(**{**defaults, **limits})  # type: ignore[arg-type]
    model = tiny_model(config=config)
    model.decoder.embed.weight[POISON] = torch.nan
    return Engine(model.config, Runner(model, sizes), TOKENIZER, sizes)


def picture(seed: int) -> Media:
    colour = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
    return Media(np.tile(colour, (1, 16, 16, 1)), str(seed))


def ask(engine: Engine, text: str, *seeds: int, **rules: object) -> Answer:
    """Pictures and text by turns: picture, text, picture, text."""
    ids = [id for _ in seeds for id in (IMAGE, *text_ids(text), END_OF_CHUNK)] or text_ids(text)
    prompt = Prompt(ids, visible_media(ids, IMAGE), [picture(seed) for seed in seeds])
    return submit(engine, prompt, Sampling(**{**RULES, **rules}))  # type: ignore[arg-type]


def alone(text: str, *seeds: int, **rules: object) -> Answer:
    engine = new_engine()
    answer = ask(engine, text, *seeds, **rules)
    drive(engine)
    return answer


def same(found: Answer, expected: Answer, index: int = 0) -> bool:
    """Equal tokens, and log-probabilities closer than any two pictures bring them."""
    is_close = np.allclose(found.logprobs(index), expected.logprobs(), rtol=0, atol=1e-4)
    return is_close and found.token_ids(index) == expected.token_ids()


@pytest.mark.parametrize("rules", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "seeded"])
def test_alone_and_beside_others_are_the_same(rules: dict[str, object]) -> None:
    engine, answers = new_engine(num_media_slots=6), list[Answer]()
    for i in range(12):
        answers.append(ask(engine, "ab" * i or "c", *range(i % 4), **rules))
        step(engine)
    drive(engine)
    for i, answer in enumerate(answers):
        assert same(answer, alone("ab" * i or "c", *range(i % 4), **rules))


def test_the_last_picture_matters() -> None:
    assert not same(alone("what", 0, 1), alone("what", 0, 2))


def test_a_warm_picture_answers_as_a_cold_one() -> None:
    engine = new_engine(num_media_slots=2)
    for seeds in ((1,), (2, 3), (1,), (3, 1)):  # hits, evictions, latents kept
        answer = ask(engine, "what", *seeds)
        drive(engine)
        assert same(answer, alone("what", *seeds))


def test_all_choices_go_on_from_one_prompt() -> None:
    engine = new_engine()
    answer = ask(engine, "what", 1, n=3)
    drive(engine)
    assert all(same(answer, alone("what", 1), i) for i in range(3))


def test_a_request_that_ended_in_nan_leaves_no_trace_in_its_blocks() -> None:
    engine = new_engine(max_running=2)
    bad = ask(engine, "~" * 60, n=2)
    drive(engine)
    short, long = ask(engine, "short", max_tokens=30), ask(engine, "long" * 10)
    drive(engine)
    assert isinstance(bad.events[-1], EngineFailure)
    assert same(short, alone("short", max_tokens=30)) and same(long, alone("long" * 10))


def test_a_model_that_sees_all_media_answers_as_its_dense_pass() -> None:
    cross = replace(tiny_config().cross_attention, sees_all_media=True)
    config = replace(tiny_config(), cross_attention=cross)
    engine, answers = new_engine(config), list[Answer]()
    engine.runner.model.decoder.embed.weight[POISON] = 0  # these answers contain a `~`
    for num in (3, 0, 1, 2):  # of unequal numbers of pictures, decoded together
        answers.append(ask(engine, "what", *range(num)))
        step(engine)
    drive(engine)
    for num, answer in zip((3, 0, 1, 2), answers, strict=True):
        assert answer.token_ids() == greedy(engine, answer, num)


def greedy(engine: Engine, answer: Answer, num: int) -> list[int]:
    """The likeliest token at each place of an answer to `num` pictures, without a cache."""
    assert answer.handle is not None
    ids = answer.handle.request.prompt.token_ids + answer.token_ids()
    pixels = np.stack([picture(seed).pixels for seed in range(max(1, num))])
    normal = torch.from_numpy(engine.runner.transform.normalise(pixels))
    logits = dense(engine.runner.model, ids, normal)[-len(answer.token_ids()) - 1 : -1]
    logits[:, [*engine.banned.tolist(), *engine.stop_ids]] = -torch.inf
    return logits.argmax(-1).tolist()

"""Engines with a real network, random and tiny, and what may be asked of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fakes import END_OF_CHUNK, IMAGE, TOKENIZER, Answer, drive, score, submit, text_ids
from flamingo_model.checkpoints.language_models import decoder_config
from flamingo_model.config import FlamingoConfig
from flamingo_model.cross_attention import visible_media
from flamingo_model.flamingo import Flamingo
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from forward import dense
from language import THEIRS
from tiny import tiny_config, tiny_model

POISON = text_ids("~")[0]
RULES = {"max_tokens": 12, "min_tokens": 12, "logprobs": 0}
KINDS = ("tiny", "mpt", "mistral", "gqa", "sees-all")


@cache
def config(kind: str) -> FlamingoConfig:
    """ALiBi, a sliding window of 5, grouped queries, and a model that looks at all pictures."""
    tiny = tiny_config()
    if kind == "tiny":
        return tiny
    if kind == "sees-all":
        cross = replace(tiny.cross_attention, sees_all_media=True)
        return replace(tiny, cross_attention=cross)
    name = {"mpt": "mpt", "mistral": "mistral", "gqa": "mistral-whole"}[kind]
    decoder = decoder_config(THEIRS[name]().to_dict())
    sizes = {"vocab_size": tiny.decoder.vocab_size, "max_positions": 256}
    return replace(tiny, decoder=replace(decoder, **sizes))


@cache
def network(
    kind: str = "tiny", dtype: torch.dtype = torch.float32, is_poisoned: bool = False
) -> Flamingo:
    """Its weights are large, so that it has opinions; poisoned it gives NaN for a `~`."""
    model = tiny_model(config=config(kind))
    for name, parameter in model.decoder.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data.mul_(2)
    if is_poisoned:
        model.decoder.embed.weight[POISON] = torch.nan
    return model.to(dtype)


def new_engine(
    kind: str = "tiny",
    dtype: torch.dtype = torch.float32,
    is_poisoned: bool = False,
    model: Flamingo | None = None,
    **given: Any,
) -> Engine:
    defaults = {"max_running": 40, "max_length": 128, "num_blocks": 300, "block_size": 4}
    sizes = EngineLimits(**{**defaults, **given})
    model = model or network(kind, dtype, is_poisoned)
    return Engine(model.config, Runner(model, sizes), TOKENIZER, sizes)


def picture(seed: int) -> Media:
    colour = np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)
    return Media(np.tile(colour, (1, 16, 16, 1)), str(seed))


def prompt(text: str, *seeds: int, salt: str | None = None, end: str = "") -> Prompt:
    """Pictures and text by turns: picture, text, picture, text; then `end`."""
    ids = [id for _ in seeds for id in (IMAGE, *text_ids(text), END_OF_CHUNK)] or text_ids(text)
    ids += text_ids(end)
    return Prompt(ids, visible_media(ids, IMAGE), [picture(seed) for seed in seeds], salt=salt)


def ask(engine: Engine, text: str, *seeds: int, **rules: Any) -> Answer:
    outside = {k: rules.pop(k) for k in ("priority", "deadline", "adapter") if k in rules}
    shape = {k: rules.pop(k) for k in ("salt", "end") if k in rules}
    sampling = Sampling(**{**RULES, **rules})
    return submit(engine, prompt(text, *seeds, **shape), sampling, **outside)


def rank(
    engine: Engine, candidates: list[list[int]], text: str, *seeds: int, **outside: Any
) -> Answer:
    return score(engine, prompt(text, *seeds), candidates, **outside)


def alone(
    text: str, *seeds: int, kind: str = "tiny", model: Flamingo | None = None, **rules: Any
) -> Answer:
    engine = new_engine(kind, model=model)
    answer = ask(engine, text, *seeds, **rules)
    drive(engine)
    return answer


def same(found: Answer, expected: Answer, index: int = 0) -> bool:
    """Equal tokens, and log-probabilities closer than any two pictures bring them."""
    logprobs = found.logprobs(index), expected.logprobs()
    return found.token_ids(index) == expected.token_ids() and np.allclose(
        *logprobs, rtol=0, atol=1e-4
    )


def whole(kind: str, asked: Prompt, answer: list[int]) -> Tensor:
    """Log-probabilities [tokens, vocab] behind each token of prompt and answer, without a cache."""
    model = network(kind)
    pixels = [m.pixels for m in asked.media] or [picture(0).pixels]
    normal = model.config.vision.pixel_transform().normalise(np.stack(pixels))
    with torch.inference_mode():
        logits = dense(model, [*asked.token_ids, *answer], torch.from_numpy(normal))
    return logits.double().log_softmax(-1)

"""Engines with the recorded checkpoints. Pixels are the recorded ones, already normalised."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fakes import Answer, score, submit
from flamingo_model.prompt import build_renderer
from flamingo_server.engine.engine import Engine
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import Media, Prompt, Sampling
from flamingo_server.engine.runner import Runner
from golden_sets import GOLDEN, GoldenSet, loaded


class RecordedPixels(Runner):
    """Media whose pixels are float bits of what the reference's vision tower was given."""

    def encode_chunk(self, media: list[Media]) -> Tensor:
        pixels = np.stack([m.pixels for m in media]).view(np.float32)
        return self.model.encode_media(torch.from_numpy(pixels))


def new_engine(name: str, stop: list[int] | None = None, **given: int) -> Engine:
    """`stop` in place of the checkpoint's end tokens."""
    model, tokenizer = loaded(name)
    defaults = {"max_running": 64, "max_length": 160, "block_size": 4, "num_blocks": 800}
    limits = EngineLimits(**{**defaults, **given})  # type: ignore[arg-type]
    engine = Engine(model.config, RecordedPixels(model, limits), tokenizer, limits)
    if stop is not None:
        engine.stop_ids = stop
        engine.banned = torch.tensor([], dtype=torch.long)  # the references ban nothing
    return engine


def recorded(name: str, case: str) -> list[tuple[Prompt, int]]:
    """Each row's prompt without padding, and how much padding it had."""
    model, tokenizer = loaded(name)
    arrays, renderer = (
        GoldenSet(GOLDEN / name).arrays(case),
        build_renderer(tokenizer, model.config),
    )
    pixels, found = arrays.get("vision_x", arrays.get("pixel_values")), []
    for number, ids in enumerate(arrays["input_ids"]):
        mine = ids[arrays["attention_mask"][number].bool()].tolist()
        index = renderer.rule.prompt(mine, renderer.marks)
        media = []
        if pixels is not None:
            views = pixels[number].reshape(-1, 1, *pixels.shape[-3:])[: max(index) + 1]
            media = [recorded_media(view, f"{case}/{number}/{i}") for i, view in enumerate(views)]
        prompt = Prompt(mine, index, media, renderer.rule.generated(index))
        found.append((prompt, len(ids) - len(mine)))
    return found


def recorded_media(pixels: Tensor, digest: str) -> Media:
    return Media(pixels.float().contiguous().numpy().view(np.uint8), digest)


def answer(engine: Engine, prompt: Prompt, **rules: object) -> Answer:
    return submit(engine, prompt, Sampling(**{"max_tokens": 12, **rules}))  # type: ignore[arg-type]


def rank(engine: Engine, prompt: Prompt, candidates: list[list[int]]) -> Answer:
    return score(engine, prompt, candidates)

"""A runner without a network, so that the engine's tests take milliseconds, and what goes with it.

The fake model answers a prompt with its text reversed and an end of chunk. Above temperature 0
other tokens get their chance, by numbers that depend on the tokens before them alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flamingo_server.engine.engine import Engine, RequestHandle, Submission
from flamingo_server.engine.latents_store import LatentsStore
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.request import (
    Ended,
    Event,
    Finished,
    FinishReason,
    LoadedAdapter,
    Media,
    Prompt,
    Request,
    Sampling,
    Scored,
    Task,
    Text,
)
from flamingo_server.engine.request import Sequence as Hypothesis
from flamingo_server.engine.runner import Runner
from flamingo_server.engine.scheduler import Plan
from tiny import tiny_config, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END_OF_TEXT, END_OF_CHUNK, IMAGE = 0, 1, 2
VOCAB_SIZE = tiny_config().decoder.vocab_size


def decode_bytes(ids: Sequence[int]) -> str:
    """What a byte-level tokenizer does, for tokens that are bytes."""
    return bytes(ids).decode(errors="replace")


def text_ids(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def make_prompt(text: str = "", *digests: str) -> Prompt:
    """The named pictures first, then the text."""
    ids = [IMAGE] * len(digests) + text_ids(text)
    index = [min(i, len(digests) - 1) for i in range(len(ids))]
    pixels = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    return Prompt(ids, index, [Media(pixels, digest) for digest in digests])


class IdleTask(Task):
    """One whose logits nobody reads."""

    def __init__(self, width: int = 1) -> None:
        self.width = width

    def take(self, sequence: Hypothesis, first: int, logits: Tensor) -> None:
        raise AssertionError("nothing has run")

    def stop(self, reason: FinishReason) -> None:
        raise AssertionError("nothing has begun")


def make_request(text: str = "a", *digests: str, width: int = 1, priority: int = 0) -> Request:
    """One that no engine has seen."""
    request = Request(text, make_prompt(text, *digests), lambda event: None, priority)
    request.sequences = [Hypothesis(request, list(request.prompt.token_ids))]
    request.task = IdleTask(width)
    return request


class FakeRunner(Runner):
    """Logits from `answer`; `before_step` may raise or sleep, and there are three ways to fail."""

    def __init__(
        self,
        answer: Callable[[str], str] = lambda text: text[::-1],
        before_step: Callable[[Plan], None] = lambda plan: None,
        not_finite: str = "\0",
        bad_media: str = "",
    ) -> None:
        self.answer, self.before_step = answer, before_step
        self.not_finite, self.bad_media = not_finite, bad_media
        self.encoded: list[str] = []
        self.num_computed = 0  # tokens

    def encode(self, media: list[Media]) -> list[Tensor]:
        if self.bad_media in [m.digest for m in media]:
            raise RuntimeError("the vision tower choked")
        self.encoded += [m.digest for m in media]
        return [torch.zeros(4) for _ in media]

    def to_device(self, latents: Tensor) -> Tensor:
        return latents

    def fill_slots(
        self, slots: list[int], latents: list[Tensor], adapter: LoadedAdapter | None = None
    ) -> None:
        assert len(slots) == len(set(slots)) == len(latents)

    def step(self, plan: Plan) -> Tensor:
        self.before_step(plan)
        self.num_computed += plan.num_tokens
        found = [
            self.logits(chunk.sequence, place)
            for chunk in plan.in_order()
            for place in chunk.wanted
        ]
        return torch.stack(found) if found else torch.zeros(0, VOCAB_SIZE)

    def logits(self, sequence: Hypothesis, place: int) -> Tensor:
        """The next token of the answer stands out; it is NaN for a prompt with `not_finite`."""
        prompt_ids, generated = sequence.request.prompt.token_ids, self.generated(sequence, place)
        prompt = TOKENIZER.decode(prompt_ids)
        history = np.array([*prompt_ids, *generated], dtype=np.int64).tobytes()
        noise = torch.Generator().manual_seed(zlib.crc32(history))
        logits = torch.rand(VOCAB_SIZE, generator=noise)
        answer = [*text_ids(self.answer(prompt)), END_OF_CHUNK]
        logits[answer[min(len(generated), len(answer) - 1)]] += 8
        return logits * torch.nan if self.not_finite in prompt else logits

    def generated(self, sequence: Hypothesis, place: int) -> list[int]:
        """What stands between the prompt and the token after `place`."""
        if sequence.tree is None or place < sequence.num_prompt:
            return sequence.tokens[sequence.num_prompt : place + 1]
        path = sequence.tree.path(place - sequence.num_prompt)
        return [sequence.tree.token_ids[node] for node in reversed(path)]


class Answer:
    """Everything an engine delivered for one request."""

    handle: RequestHandle

    def __init__(self) -> None:
        self.events: list[Event] = []

    def text(self, index: int = 0) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Text) and e.index == index)

    def token_ids(self, index: int = 0) -> list[int]:
        texts = [e for e in self.events if isinstance(e, Text) and e.index == index]
        return [id for text in texts for id in text.token_ids]

    def logprobs(self, index: int = 0) -> list[float]:
        texts = [e for e in self.events if isinstance(e, Text) and e.index == index]
        return [found.logprob for text in texts for found in text.logprobs or []]

    def scores(self) -> list[list[float]]:
        """Of each candidate those of its tokens."""
        [found] = [e for e in self.events if isinstance(e, Scored)]
        return found.logprobs

    @property
    def reasons(self) -> list[str]:
        return [e.finish_reason for e in self.events if isinstance(e, Finished)]

    @property
    def names(self) -> list[str]:
        """The kinds of events in order."""
        return [type(event).__name__ for event in self.events]

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Ended | Exception)


def make_engine(
    runner: Runner | None = None, store: LatentsStore | None = None, **limits: Any
) -> Engine:
    """Not started: `drive` steps it on the test's own thread."""
    defaults = {"max_length": 256, "num_blocks": 400, "block_size": 4, "num_media_slots": 8}
    sizes = EngineLimits(**{**defaults, **limits})
    return Engine(tiny_config(), runner or FakeRunner(), TOKENIZER, sizes, store)


def ask(engine: Engine, text: str, *digests: str, **given: Any) -> Answer:
    """Submits; sampling rules by name, and `priority`, `deadline` or `adapter`."""
    outside = {k: given.pop(k) for k in ("priority", "deadline", "adapter") if k in given}
    return submit(engine, make_prompt(text, *digests), Sampling(**given), **outside)


def submit(engine: Engine, prompt: Prompt, sampling: Sampling, **outside: Any) -> Answer:
    answer = Answer()
    what = Submission("test", prompt, answer.events.append, **outside)
    answer.handle = engine.generate(what, sampling)
    return answer


def score(engine: Engine, prompt: Prompt, candidates: list[list[int]], **outside: Any) -> Answer:
    answer = Answer()
    what = Submission("test", prompt, answer.events.append, **outside)
    answer.handle = engine.score(what, candidates)
    return answer


def step(engine: Engine, times: int = 1) -> None:
    for _ in range(times):
        if not engine.num_requests and engine.inbox.empty():
            return  # it would wait for work
        engine.take_inbox()
        engine.step()


def drive(engine: Engine) -> None:
    """Until nothing waits or runs; then nothing may have leaked."""
    while engine.num_requests:
        step(engine)
    engine.check_integrity()

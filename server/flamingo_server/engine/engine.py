"""The engine thread: takes requests in, steps, sends events out, and never dies of a request."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tokenizers import Tokenizer
from torch import Tensor

from flamingo_model.config import FlamingoConfig
from flamingo_model.prompt import MARKERS

from ..errors import DeadlineExceeded, Draining, EngineFailure, QueueFull
from .detokenize import Detokenizer
from .limits import EngineLimits
from .media_cache import MediaCache
from .media_loader import MediaLoader
from .request import (
    Ended,
    Event,
    Finished,
    FinishReason,
    Prompt,
    Request,
    Sampling,
    Sequence,
    Started,
    Text,
)
from .runner import Runner
from .sampling import choose_token
from .scheduler import Plan, Scheduler

logger = logging.getLogger("flamingo_server.engine")


@dataclass(frozen=True)
class EngineStats:
    """Counters for /metrics, read without a lock."""

    running: int
    waiting: int
    rows_used: int
    media_hits: int
    media_misses: int
    latents_bytes: int
    steps: int


class RequestHandle:
    """What a submitter keeps: the way to cancel."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self.engine, self.request = engine, request

    def cancel(self) -> None:
        """Idempotent, from any thread; takes effect within one step."""
        self.engine.inbox.put(("abort", self.request))


class Engine:
    """Submit from any thread; everything else happens on the engine's own."""

    def __init__(
        self, config: FlamingoConfig, runner: Runner, tokenizer: Tokenizer, limits: EngineLimits
    ) -> None:
        tokens = config.tokens
        self.limits, self.tokenizer, self.runner = limits, tokenizer, runner
        ends = (tokens.end_of_chunk, tokens.end_of_text)
        self.stop_ids = [token_id(tokenizer, token) for token in ends]
        never = MARKERS[tokens.image_style](tokenizer, tokens).never_answered
        spare = range(tokenizer.get_vocab_size(), config.decoder.vocab_size)
        self.banned = [*never, *spare]  # a generated picture does not exist
        self.media = MediaCache(limits.num_media_slots)
        self.loader = MediaLoader(runner, self.media, limits.latents_bytes)
        self.scheduler = Scheduler(limits.num_rows, limits.max_step_tokens, self.media)
        self.inbox: queue.SimpleQueue[tuple[str, Request | None]] = queue.SimpleQueue()
        self.num_requests = self.num_places = 0  # guarded by `lock`
        self.lock = threading.Lock()
        self.is_draining = self.has_stopped = False
        self.num_steps = 0
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # ---- called from other threads

    def start(self) -> None:
        self.thread.start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, held while a request's pictures are still being decoded.

        Raises QueueFull or Draining, before any of that work is done.
        """
        with self.lock:
            self.check_open()
            if self.num_requests + self.num_places >= self.limits.max_queued:
                raise QueueFull(
                    f"{self.limits.max_queued} requests are queued or running, the limit: "
                    "try again later"
                )
            self.num_places += 1
        try:
            yield
        finally:
            with self.lock:
                self.num_places -= 1

    def check_open(self) -> None:
        if self.is_draining or self.has_stopped:
            raise Draining("the server is shutting down: send the request again elsewhere")

    def submit(
        self,
        id: str,
        prompt: Prompt,
        sampling: Sampling,
        deliver: Callable[[Event], None],
        priority: int = 0,
        deadline: float | None = None,
        media_ms: float = 0.0,
    ) -> RequestHandle:
        """Raises TooLarge or Draining; later failures come through `deliver`."""
        self.limits.check(len(prompt.token_ids), sampling.max_tokens, sampling.n, len(prompt.media))
        request = Request(id, prompt, sampling, deliver, priority, deadline, media_ms)
        seed = sampling.seed if sampling.seed is not None else random.getrandbits(62)
        request.sequences = [
            Sequence(request, i, self.detokenizer(sampling), random.Random(f"{seed}/{i}"))
            for i in range(sampling.n)
        ]
        with self.lock:
            self.check_open()
            self.num_requests += 1
            self.inbox.put(("add", request))  # under the lock: never behind the last "stop"
        return RequestHandle(self, request)

    def detokenizer(self, sampling: Sampling) -> Detokenizer:
        def decode(ids: list[int]) -> str:
            text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
            return text

        return Detokenizer(decode, sampling.stop)

    def drain(self, timeout_s: float) -> None:
        """Refuses new requests, lets the running ones end, then stops the thread."""
        with self.lock:
            self.is_draining = True
        until = time.monotonic() + timeout_s
        while self.num_requests and time.monotonic() < until and self.thread.is_alive():
            time.sleep(0.01)
        self.inbox.put(("stop", None))
        self.thread.join(timeout=5)

    @property
    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=max(0, self.num_requests - len(self.scheduler.running)),
            rows_used=self.limits.num_rows - len(self.scheduler.free_rows),
            media_hits=self.media.hits,
            media_misses=self.media.misses,
            latents_bytes=self.loader.latents.num_bytes,
            steps=self.num_steps,
        )

    # ---- the engine thread

    def run(self) -> None:
        try:
            while self.take_inbox():
                self.step()
        finally:
            self.stop_all()

    def step(self) -> None:
        """One token for everyone. What fails here ends the requests of this step, no others."""
        self.expire()
        plan = self.scheduler.schedule()
        try:
            self.load_media(plan)
            if plan:
                self.advance(plan)
        except Exception as error:
            logger.exception("a step failed; its requests end")
            for request in plan.requests():
                self.fail(request, failure(error))

    def take_inbox(self) -> bool:
        """Waits for work when there is none. False: stop."""
        is_idle = not self.scheduler.running and not self.scheduler.waiting
        if is_idle:
            self.check_integrity()
        while is_idle or not self.inbox.empty():
            action, request = self.inbox.get()
            is_idle = False
            if request is None:
                return False
            if action == "add":
                self.scheduler.add(request)
            else:
                self.abort(request)
        return True

    def expire(self) -> None:
        for request in [r for r in self.scheduler.requests() if r.has_expired]:
            if request.first_token is None:
                self.fail(request, DeadlineExceeded("deadline_ms passed before the first token"))
            else:
                self.finish_all(request, "timeout")

    def load_media(self, plan: Plan) -> None:
        """Pictures not seen before are encoded; a failure ends only the requests that sent them."""
        for request in plan.prefills:
            request.scheduled = time.monotonic()
        for request, error in self.loader.load(plan.prefills):
            plan.prefills.remove(request)
            self.fail(request, failure(error))

    def advance(self, plan: Plan) -> None:
        """One forward pass, one token for every sequence in it."""
        self.num_steps += 1
        logits = self.runner.step(plan)
        for row, sequence in enumerate(plan.decodes):
            self.accept(sequence, logits[row])
        for row, request in enumerate(plan.prefills, start=len(plan.decodes)):
            self.begin(request, logits[row])

    def begin(self, request: Request, logits: Tensor) -> None:
        """The prompt is in the cache: announce, then the first token of every sequence."""
        request.first_token = time.monotonic()
        request.deliver(Started(request.usage()))
        self.runner.share_prompt(request)
        for sequence in request.sequences:
            self.accept(sequence, logits)

    def accept(self, sequence: Sequence, logits: Tensor) -> None:
        """Chooses the next token; whatever goes wrong ends this request alone."""
        request = sequence.request
        if not self.scheduler.holds(request):  # a sibling sequence has failed
            return
        try:
            token, logprob = choose_token(logits, sequence, self.banned, self.stop_ids)
            sequence.generated.append(token)
            if logprob is not None:
                sequence.logprobs.append(logprob)
            self.report(sequence, token)
        except Exception as error:
            logger.exception("request %s failed", request.id)
            self.fail(request, failure(error))

    def report(self, sequence: Sequence, token: int) -> None:
        """Sends the text that is now certain and ends the sequence where it must end."""
        if token in self.stop_ids:
            self.finish(sequence, "stop")
            return
        text = sequence.detokenizer.push(token)
        if text:
            self.send_text(sequence, text)
        sampling = sequence.request.sampling
        if sequence.detokenizer.has_stopped:
            self.finish(sequence, "stop")
        elif len(sequence.generated) >= sampling.max_tokens:
            self.finish(sequence, "length")

    def send_text(self, sequence: Sequence, text: str) -> None:
        ids, logprobs = sequence.take_unsent()
        sequence.request.deliver(Text(sequence.index, text, ids, logprobs))

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """The last text, the reason, and the row back; the end once all sequences are done."""
        text = sequence.detokenizer.finish()
        if sequence.detokenizer.has_stopped and reason == "length":
            reason = "stop"
        if text or sequence.num_sent < len(sequence.generated):
            self.send_text(sequence, text)
        sequence.finish_reason = reason
        self.scheduler.free_row(sequence)
        request = sequence.request
        request.deliver(Finished(sequence.index, reason, None))
        if request.is_finished:
            self.close(request, Ended(request.usage(), request.timings()))

    def finish_all(self, request: Request, reason: FinishReason) -> None:
        for sequence in request.sequences:
            if not sequence.is_finished:
                self.finish(sequence, reason)

    def abort(self, request: Request) -> None:
        """The client has gone: nothing more is sent, everything is freed."""
        if self.scheduler.holds(request):
            logger.info("request %s cancelled", request.id)
            self.release(request)

    def fail(self, request: Request, error: Exception) -> None:
        """Does nothing to a request that has ended before."""
        if self.scheduler.holds(request):
            self.runner.clear_rows([s.row for s in request.sequences if s.row >= 0])
            self.close(request, error)

    def close(self, request: Request, event: Event) -> None:
        self.release(request)
        request.deliver(event)

    def release(self, request: Request) -> None:
        self.scheduler.remove(request)
        for sequence in request.sequences:
            sequence.finish_reason = sequence.finish_reason or "cancelled"
        with self.lock:
            self.num_requests -= 1

    def stop_all(self) -> None:
        """The thread ends: nobody is left waiting for an answer."""
        with self.lock:
            self.has_stopped = True
        while not self.inbox.empty():
            action, request = self.inbox.get()
            if action == "add" and request is not None:
                self.scheduler.add(request)
        for request in list(self.scheduler.requests()):
            self.close(request, Draining("the server stopped before the answer was complete"))

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        self.media.check_integrity()


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, f"the tokenizer lacks {token}"
    return found


def failure(error: Exception) -> Exception:
    """What the client is told: never the inside of the engine."""
    return EngineFailure(f"the engine could not finish this request ({type(error).__name__})")

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

import torch
from tokenizers import Tokenizer
from torch import Tensor

from flamingo_model.config import FlamingoConfig
from flamingo_model.prompt import MARKERS

from ..errors import DeadlineExceeded, Draining, EngineFailure, FlamingoError, QueueFull
from .answers import SampledAnswers
from .beam_answers import BeamAnswers
from .blocks import BlockPool
from .choice import Choice
from .detokenize import Detokenizer
from .embedder import Embedder, EmbedJob
from .latents_store import LatentsStore
from .limits import EngineLimits
from .media_cache import MediaCache
from .media_loader import MediaLoader
from .request import Event, LoadedAdapter, Media, Prompt, Request, Sampling, Sequence, Task
from .runner import ENCODE_AT_ONCE, Runner
from .sampling import Rules
from .scheduler import Plan, Scheduler
from .scoring import ScoredCandidates

logger = logging.getLogger("flamingo_server.engine")
Deliver = Callable[[Event], None]


@dataclass(frozen=True)
class EngineStats:
    """Counters for /metrics, read without a lock."""

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    prompt_tokens: int
    cached_tokens: int
    preemptions: int
    media_hits: int
    media_misses: int
    latents_bytes: int
    steps: int


@dataclass(frozen=True)
class Submission:
    """What every request says, whatever it wants. `deadline` is on the monotonic clock."""

    id: str
    prompt: Prompt
    deliver: Deliver
    priority: int = 0
    deadline: float | None = None
    media_ms: float = 0.0
    adapter: LoadedAdapter | None = None


class RequestHandle:
    """What a submitter keeps: the way to cancel."""

    def __init__(self, engine: Engine, request: Request | EmbedJob) -> None:
        self.engine, self.request = engine, request

    def cancel(self) -> None:
        """Idempotent, from any thread; takes effect within one step."""
        self.engine.inbox.put(("abort", self.request))


class Engine:
    """Submit from any thread; everything else happens on the engine's own."""

    def __init__(
        self,
        config: FlamingoConfig,
        runner: Runner,
        tokenizer: Tokenizer,
        limits: EngineLimits,
        store: LatentsStore | None = None,
    ) -> None:
        tokens = config.tokens
        self.limits, self.tokenizer, self.runner = limits, tokenizer, runner
        self.sees_all_media = config.cross_attention.sees_all_media
        ends = (tokens.end_of_chunk, tokens.end_of_text)
        self.stop_ids = [token_id(tokenizer, token) for token in ends]
        never = MARKERS[tokens.image_style](tokenizer, tokens).never_answered
        spare = range(tokenizer.get_vocab_size(), config.decoder.vocab_size)
        self.banned = torch.tensor(
            [*never, *spare], dtype=torch.long
        )  # a generated picture does not exist
        self.media = MediaCache(limits.num_media_slots)
        self.loader = MediaLoader(runner, self.media, limits.latents_bytes, store)
        self.blocks = BlockPool(limits.num_blocks, limits.block_size)
        self.scheduler = Scheduler(
            limits.max_running,
            limits.max_step_tokens,
            self.blocks,
            self.media,
            limits.is_deterministic,
        )
        self.embedder = Embedder(runner)
        self.inbox: queue.SimpleQueue[tuple[str, Request | EmbedJob | None]] = queue.SimpleQueue()
        self.num_requests = self.num_places = 0  # guarded by `lock`
        self.lock = threading.Lock()
        self.is_draining = self.has_stopped = False
        self.num_steps = self.num_prompt_tokens = self.num_cached_tokens = 0
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)

    # ---- called from other threads

    def start(self) -> None:
        self.thread.start()

    @contextmanager
    def place(self, num: int = 1) -> Iterator[None]:
        """Places in the queue, held while a request's pictures are still being decoded.

        Raises QueueFull or Draining, before any of that work is done.
        """
        with self.lock:
            self.check_open()
            if self.num_requests + self.num_places + num > self.limits.max_queued:
                raise QueueFull(
                    f"{self.limits.max_queued} requests are queued or running, the limit: "
                    "try again later"
                )
            self.num_places += num
        try:
            yield
        finally:
            with self.lock:
                self.num_places -= num

    def check_open(self) -> None:
        if self.is_draining or self.has_stopped:
            raise Draining("the server is shutting down: send the request again elsewhere")

    def generate(self, what: Submission, sampling: Sampling) -> RequestHandle:
        """Answers with Started, Text (and Draft), Finished of every choice, Ended.

        Raises TooLarge or Draining; later failures come through `deliver`.
        """
        self.limits.check(len(what.prompt.token_ids), len(what.prompt.media), sampling)
        request = self.new_request(what, reuses_prefix=sampling.prompt_logprobs is None)
        if sampling.prompt_logprobs is not None:
            request.sequences[0].logits_from = 0
        seed = sampling.seed if sampling.seed is not None else random.getrandbits(62)
        request.choices = [
            Choice(
                request,
                i,
                self.detokenizer(sampling.stop),
                random.Random(f"{seed}/{i}"),
                keeps_logprobs=sampling.logprobs is not None,
            )
            for i in range(sampling.n)
        ]
        request.task = self.generation(request, Rules(sampling, self.banned, self.stop_ids))
        return self.submit(request)

    def generation(self, request: Request, rules: Rules) -> Task:
        if rules.sampling.num_beams > 1:
            return BeamAnswers(self, request, rules, self.detokenizer())
        return SampledAnswers(self, request, rules)

    def score(self, what: Submission, candidates: list[list[int]]) -> RequestHandle:
        """Answers with Started, Scored, Ended. No candidate may be empty.

        Raises TooLarge or Draining; later failures come through `deliver`.
        """
        longest = max(map(len, candidates))
        self.limits.check_scores(len(what.prompt.token_ids), len(what.prompt.media), longest)
        request = self.new_request(what)
        request.task = ScoredCandidates(self, request, candidates, self.limits.trie_at_once)
        return self.submit(request)

    def embed(self, media: list[Media], deliver: Deliver) -> RequestHandle:
        """Answers with Embedded, or an exception. Raises Draining."""
        return self.submit(EmbedJob(media, deliver))

    def new_request(self, what: Submission, reuses_prefix: bool = True) -> Request:
        request = Request(
            what.id,
            what.adapter.own(what.prompt) if what.adapter else what.prompt,
            what.deliver,
            what.priority,
            what.deadline,
            what.media_ms,
            self.sees_all_media,
            reuses_prefix,
            what.adapter,
        )
        request.sequences = [Sequence(request, list(what.prompt.token_ids))]
        return request

    def submit(self, request: Request | EmbedJob) -> RequestHandle:
        with self.lock:
            self.check_open()
            self.num_requests += 1
            self.inbox.put(("add", request))  # under the lock: never behind the last "stop"
        return RequestHandle(self, request)

    def detokenizer(self, stop: tuple[str, ...] = ()) -> Detokenizer:
        def decode(ids: list[int]) -> str:
            text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
            return text

        return Detokenizer(decode, stop)

    def drain(self, timeout_s: float) -> None:
        """Refuses new requests, lets the running ones end, then stops the thread."""
        with self.lock:
            self.is_draining = True
        until = time.monotonic() + timeout_s
        while self.num_requests and time.monotonic() < until and self.thread.is_alive():
            time.sleep(0.01)
        self.inbox.put(("stop", None))
        self.thread.join(timeout=5)
        if self.loader.store:
            self.loader.store.close()

    @property
    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def num_with(self, adapter: LoadedAdapter) -> int:
        """Requests under way with it, read without a lock."""
        requests = [*self.scheduler.running, *self.scheduler.waiting]
        return sum(request.adapter is adapter for request in requests)

    def stats(self) -> EngineStats:
        running = len(self.scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(0, self.num_requests - running),
            blocks_used=self.blocks.num_used,
            blocks_cached=len(self.blocks.idle),
            prompt_tokens=self.num_prompt_tokens,
            cached_tokens=self.num_cached_tokens,
            preemptions=self.scheduler.num_preemptions,
            media_hits=self.media.hits,
            media_misses=self.media.misses,
            latents_bytes=self.loader.latents.num_bytes,
            steps=self.num_steps,
        )

    # ---- called by tasks, on the engine thread

    def fork(self, sequence: Sequence) -> Sequence:
        return self.scheduler.tables.fork(sequence)

    def finish(self, sequence: Sequence) -> None:
        self.scheduler.tables.finish(sequence)

    def drop(self, sequence: Sequence) -> None:
        self.scheduler.tables.drop(sequence)

    def close(self, request: Request, event: Event) -> None:
        self.num_prompt_tokens += len(request.prompt.token_ids)
        self.num_cached_tokens += request.cached_tokens
        self.release(request)
        request.deliver(event)

    # ---- the engine thread

    def run(self) -> None:
        try:
            while self.take_inbox():
                self.step()
        finally:
            self.stop_all()

    def step(self) -> None:
        """One forward pass. What fails here ends the requests of this step, no others."""
        self.expire()
        for request in self.scheduler.admit():
            request.scheduled = request.scheduled or time.monotonic()
        self.load_media()
        self.embed_media()
        plan = self.scheduler.schedule()
        try:
            if plan:
                self.advance(plan)
        except Exception as error:
            logger.exception("a step failed; its requests end")
            for request in plan.requests():
                self.fail(request, failure(error))

    def take_inbox(self) -> bool:
        """Waits for work when there is none. False: stop."""
        busy = self.scheduler.running or self.scheduler.waiting or self.embedder.jobs
        is_idle = not busy
        if is_idle:
            self.check_integrity()
        while is_idle or not self.inbox.empty():
            action, request = self.inbox.get()
            is_idle = False
            if request is None:
                return False
            if isinstance(request, EmbedJob):
                self.take_job(action, request)
            elif action == "add":
                self.scheduler.add(request)
            else:
                self.abort(request)
        return True

    def take_job(self, action: str, job: EmbedJob) -> None:
        if action == "add":
            self.embedder.add(job)
        elif job in self.embedder.jobs:  # its client has gone
            self.embedder.jobs.remove(job)
            self.count_out()

    def expire(self) -> None:
        for request in [r for r in self.scheduler.requests() if r.has_expired]:
            try:
                if request.first_token is None:
                    raise DeadlineExceeded("deadline_ms passed before the first token")
                request.task.stop("timeout")
            except Exception as error:
                self.fail(request, failure(error))

    def load_media(self) -> None:
        """Pictures not seen before are encoded, few at a time while others wait for their tokens;
        a failure ends only the requests that sent them.
        """
        waiting = [r for r in self.scheduler.running if not r.has_media]
        if not waiting:
            return
        is_busy = len(waiting) < len(self.scheduler.running)
        at_once = self.limits.media_at_once if is_busy else ENCODE_AT_ONCE
        for request, error in self.loader.load(waiting, at_once):
            self.fail(request, failure(error))

    def embed_media(self) -> None:
        """As `load_media`: few at a time while others wait for their tokens."""
        if not self.embedder.jobs:
            return
        is_busy = bool(self.scheduler.running)
        at_once = self.limits.media_at_once if is_busy else ENCODE_AT_ONCE
        for job, event in self.embedder.advance(at_once):
            self.count_out()
            job.deliver(failure(event) if isinstance(event, Exception) else event)

    def advance(self, plan: Plan) -> None:
        """Runs the plan, and hands each sequence's logits to its request's task."""
        self.num_steps += 1
        logits = self.runner.step(plan)
        self.scheduler.commit(plan)
        begin, wants = 0, [(chunk, chunk.wanted) for chunk in plan.in_order()]  # tasks change them
        for chunk, wanted in wants:
            if wanted:
                self.hand_over(chunk.sequence, wanted.start, logits[begin : begin + len(wanted)])
            begin += len(wanted)

    def hand_over(self, sequence: Sequence, first: int, logits: Tensor) -> None:
        """Whatever goes wrong ends this request alone."""
        request = sequence.request
        if not self.scheduler.holds(request):  # a sibling sequence has failed
            return
        try:
            request.task.take(sequence, first, logits)
        except Exception as error:
            logger.exception("request %s failed", request.id)
            self.fail(request, failure(error))

    def abort(self, request: Request) -> None:
        """The client has gone: nothing more is sent, everything is freed."""
        if self.scheduler.holds(request):
            logger.info("request %s cancelled", request.id)
            self.release(request)

    def fail(self, request: Request, error: Exception) -> None:
        """Does nothing to a request that has ended before."""
        if self.scheduler.holds(request):
            self.scheduler.tables.forget(request)
            self.close(request, error)

    def release(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.count_out()

    def count_out(self) -> None:
        with self.lock:
            self.num_requests -= 1

    def stop_all(self) -> None:
        """The thread ends: nobody is left waiting for an answer."""
        with self.lock:
            self.has_stopped = True
        while not self.inbox.empty():
            action, request = self.inbox.get()
            if isinstance(request, EmbedJob):
                self.take_job(action, request)
            elif action == "add" and request is not None:
                self.scheduler.add(request)
        stopped = Draining("the server stopped before the answer was complete")
        for request in list(self.scheduler.requests()):
            self.close(request, stopped)
        for job in self.embedder.jobs:
            self.count_out()
            job.deliver(stopped)
        self.embedder.jobs.clear()

    def check_integrity(self) -> None:
        """With nobody left, nothing is held."""
        self.scheduler.check_integrity()
        self.media.check_integrity()


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, f"the tokenizer lacks {token}"
    return found


def failure(error: Exception) -> Exception:
    """What the client is told: its own mistakes, and never the inside of the engine."""
    if isinstance(error, FlamingoError):
        return error
    return EngineFailure(f"the engine could not finish this request ({type(error).__name__})")

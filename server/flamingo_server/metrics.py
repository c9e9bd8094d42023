"""Prometheus metrics, in a registry of the app's own. Names follow vLLM's where it has one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .engine.engine import EngineStats
from .engine.request import Ended, Event, Finished, Scored

TOKENS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
GAUGES = {
    "running": "requests that run",
    "waiting": "requests that wait",
    "blocks_used": "cache blocks in use",
    "blocks_cached": "cache blocks that hold a prefix and wait to be used again",
    "preemptions": "requests displaced for lack of blocks, since start",
    "media_hits": "pictures found encoded, since start",
    "media_misses": "pictures that had to be encoded, since start",
    "latents_bytes": "bytes of encoded pictures kept",
    "steps": "engine steps, since start",
    "prefix_cache_queries": "prompt tokens of ended requests, since start",
    "prefix_cache_hits": "those of them that were found in the cache",
}
FIELDS = {"prefix_cache_queries": "prompt_tokens", "prefix_cache_hits": "cached_tokens"}
"""Of the engine's counts, where the metric has another name."""


class Metrics:
    """Counts what the events of each request say; asks the engine for the rest."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.gauges = {
            name: Gauge(f"flamingo_{name}", text, registry=self.registry)
            for name, text in GAUGES.items()
        }
        self.finished = self.counter("requests_finished", "choices ended, by reason", "reason")
        self.failed = self.counter("requests_failed", "requests ended by an error", "type")
        self.http = self.counter("http_responses", "answers by status", "status")
        self.prompt_tokens = self.counter("prompt_tokens", "tokens read")
        self.completion_tokens = self.counter("completion_tokens", "tokens generated")
        self.adapters = Gauge("flamingo_adapters", "adapters loaded", registry=self.registry)
        self.adapter_requests = self.counter("adapter_requests", "requests by adapter", "adapter")
        self.candidates = self.counter("candidates_scored", "candidates of classify and score")
        self.commit_lag = self.histogram(
            "beam_commit_lag_tokens",
            "most tokens of a search's best hypothesis that were not yet certain",
            TOKENS,
        )
        self.ttft = self.histogram("time_to_first_token_seconds", "from submission on")
        self.queue = self.histogram(
            "request_queue_time_seconds", "from submission to the first step"
        )
        self.media = self.histogram("media_time_seconds", "fetching, decoding, tokenising")
        self.latency = self.histogram("e2e_request_latency_seconds", "from submission to the end")

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"flamingo_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"flamingo_{name}", text, registry=self.registry, buckets=buckets)

    def watch(self, deliver: Callable[[Event], None]) -> Callable[[Event], None]:
        """`deliver`, counting on the way."""

        def counted(event: Event) -> None:
            self.count(event)
            deliver(event)

        return counted

    def count(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.finished.labels(event.finish_reason).inc()
        elif isinstance(event, Exception):
            self.failed.labels(type(event).__name__).inc()
        elif isinstance(event, Scored):
            self.candidates.inc(len(event.logprobs))
        elif isinstance(event, Ended):
            if event.commit_lag is not None:
                self.commit_lag.observe(event.commit_lag)
            timings = event.timings
            self.prompt_tokens.inc(event.usage.prompt_tokens)
            self.completion_tokens.inc(event.usage.completion_tokens)
            self.ttft.observe(timings.ttft_ms / 1000)
            self.queue.observe(timings.queue_ms / 1000)
            self.media.observe(timings.media_ms / 1000)
            self.latency.observe((timings.ttft_ms + timings.decode_ms) / 1000)

    def render(self, stats: EngineStats | None) -> bytes:
        for name, gauge in self.gauges.items():
            gauge.set(getattr(stats, FIELDS.get(name, name)) if stats else 0)
        return generate_latest(self.registry)


class CountAnswers:
    """Counts every answer by its status, those of the guards included. Pure ASGI."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        self.app, self.counter = app, counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.counter.labels(str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)

"""Engine events → server-sent events. Leaving early, for whatever reason, aborts the request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from .engine.request import Draft, Ended, Event, Finished, Started, Text
from .errors import EngineFailure, FlamingoError

PING_SECONDS = 15.0


class EventQueue:
    """The bridge from the engine thread to one asyncio consumer; `deliver` is thread-safe."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event] = asyncio.Queue()

    def deliver(self, event: Event) -> None:
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, event)
        except RuntimeError:  # the loop has closed: nobody is there to read
            pass

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event, or None after `timeout` seconds without one."""
        try:
            async with asyncio.timeout(timeout):
                return await self.queue.get()
        except TimeoutError:
            return None


def to_error(exception: Exception) -> FlamingoError:
    if isinstance(exception, FlamingoError):
        return exception
    return EngineFailure("the server could not finish this request")


def sse(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, separators=(",", ":")))


def encode(event: Event, id: str, model: str, render_logprobs: Callable[..., Any]) -> bytes:
    match event:
        case Started(usage, prompt_logprobs):
            data: dict[str, Any] = {"id": id, "model": model, "usage": asdict(usage)}
            if prompt_logprobs is not None:
                data["prompt_logprobs"] = render_logprobs(prompt_logprobs)
            return sse("start", data)
        case Text(index, text, token_ids, logprobs):
            shown = render_logprobs(logprobs)
            data = {"index": index, "text": text, "token_ids": token_ids, "logprobs": shown}
            return sse("token", data)
        case Draft(index, text):
            return sse("hypothesis", {"index": index, "text": text})
        case Finished(index, finish_reason, score):
            return sse("done", {"index": index, "finish_reason": finish_reason, "score": score})
        case Ended(usage, timings):
            return sse("end", {"usage": asdict(usage), "timings": asdict(timings)})
        case Exception():
            return sse("error", to_error(event).to_dict())
        case _:
            raise TypeError(f"{type(event).__name__} is not streamed")


class EventStream(EventSourceResponse):
    """Cancels in its own `finally`: a generator's never runs where the client left before it."""

    def __init__(self, chunks: AsyncIterator[bytes], cancel: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(chunks, headers=headers)
        self.cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.cancel()


async def stream(
    first: Event, events: EventQueue, to_bytes: Callable[[Event], bytes]
) -> AsyncIterator[bytes]:
    """All events until the last; a comment line every 15 quiet seconds keeps proxies patient."""
    event: Event | None = first
    while True:
        if event is None:
            yield KEEPALIVE_COMMENT
        else:
            is_large = isinstance(event, Started) and event.prompt_logprobs is not None
            yield await asyncio.to_thread(to_bytes, event) if is_large else to_bytes(event)
            if isinstance(event, Ended | Exception):
                return
        event = await events.next(PING_SECONDS)

"""Engine events → server-sent events. Leaving early, for whatever reason, aborts the request."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.types import Receive, Scope, Send

from .engine.request import Draft, Ended, Event, Finished, Started, Text
from .errors import EngineFailure, FlamingoError

PING_SECONDS = 15.0
AT_ONCE = 16  # events of a stream written without a turn for the others


class EventQueue:
    """The bridge from the engine thread to one asyncio consumer; `deliver` is thread-safe.

    The loop is woken for the first of the events that wait, not for each: beside two threads of an
    engine that never sleep, a loop waits long for its turn.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: deque[Event] = deque()
        self.woken: asyncio.Future[None] = self.loop.create_future()

    def deliver(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) > 1:  # the consumer has been woken, and takes them until none is left
            return
        try:
            self.loop.call_soon_threadsafe(self.wake)
        except RuntimeError:  # the loop has closed: nobody is there to read
            pass

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)

    async def next(self, timeout: float | None = None) -> Event | None:
        """The next event, or None after `timeout` seconds without one."""
        if not self.events:
            await self.wait(timeout)
        return self.events.popleft() if self.events else None

    async def come(self, timeout: float) -> list[Event]:
        """Those that wait, in order, up to `AT_ONCE`; none after `timeout` seconds without one."""
        if not self.events:
            await self.wait(timeout)
        return [self.events.popleft() for _ in range(min(AT_ONCE, len(self.events)))]

    async def wait(self, timeout: float | None) -> None:
        """Until there is an event; `asyncio.timeout` costs as much as all the rest of a token."""
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            self.wake()

        timer = None if timeout is None else self.loop.call_later(timeout, give_up)
        try:
            while not self.events and not is_late:
                self.woken = self.loop.create_future()
                await self.woken
        finally:
            if timer is not None:
                timer.cancel()


def to_error(exception: Exception) -> FlamingoError:
    if isinstance(exception, FlamingoError):
        return exception
    return EngineFailure("the server could not finish this request")


to_json = json.JSONEncoder(separators=(",", ":")).encode  # no line ends, and ASCII alone


def sse(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {to_json(data)}\n\n".encode()


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
    """All events until the last, those that have come together in one piece; a comment line every
    15 quiet seconds keeps proxies patient."""
    found = [first]
    while True:
        yield b"".join([await written(event, to_bytes) for event in found]) or KEEPALIVE_COMMENT
        if found and isinstance(found[-1], Ended | Exception):
            return
        found = await events.come(PING_SECONDS)


async def written(event: Event, to_bytes: Callable[[Event], bytes]) -> bytes:
    is_large = isinstance(event, Started) and event.prompt_logprobs is not None
    return await asyncio.to_thread(to_bytes, event) if is_large else to_bytes(event)

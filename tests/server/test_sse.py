"""Engine events on their way to a client, without a server."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flamingo_server import sse
from flamingo_server.engine.request import Ended, Event, Finished, Text, Timings, Usage
from flamingo_server.sse import EventQueue, EventStream, encode, stream

END = Ended(Usage(1, 2, 0, 0, 0), Timings(0, 0, 0, 0, 0))


def to_bytes(event: Event) -> bytes:
    return encode(event, "id", "model", lambda found: found)


async def read(*events: Event, wait: float = 0) -> list[bytes]:
    """Everything sent when another thread delivers `events`, after `wait` seconds."""
    queue = EventQueue()
    timer = threading.Timer(wait, lambda: [queue.deliver(event) for event in events[1:]])
    timer.start()
    return [chunk async for chunk in stream(events[0], queue, to_bytes)]


def test_an_event_is_a_name_and_one_line_of_json() -> None:
    data = to_bytes(Text(0, "two\nlines\u2028🦩", [7], None)).decode()
    assert data.startswith("event: token\ndata: {") and data.endswith("}\n\n")
    assert len(data.splitlines()) == 3 and data.isascii()


def test_a_stream_ends_with_its_last_event() -> None:
    chunks = asyncio.run(read(Text(0, "a", [1], None), Finished(0, "stop", None), END, END))
    assert [chunk.split()[1] for chunk in chunks] == [b"token", b"done", b"end"]


def test_an_error_ends_the_stream_and_hides_the_inside() -> None:
    _, last = asyncio.run(read(Text(0, "a", [1], None), RuntimeError("secret")))
    assert last.startswith(b"event: error\n") and b"secret" not in last


def test_a_quiet_stream_sends_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.01)
    _, *pings, last = asyncio.run(read(Text(0, "a", [1], None), END, wait=0.05))
    assert pings and all(ping == b": ping\n\n" for ping in pings)
    assert last.startswith(b"event: end")


def test_an_event_for_a_loop_that_has_closed_is_dropped() -> None:
    async def queue() -> EventQueue:
        return EventQueue()

    asyncio.run(queue()).deliver(END)


def test_a_client_that_left_before_the_first_byte_is_cancelled_too() -> None:
    cancelled: list[bool] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield b"never asked for"

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def stuck(message: Any) -> None:
        await asyncio.sleep(60)

    response = EventStream(chunks(), lambda: cancelled.append(True))
    asyncio.run(response({"type": "http", "method": "POST"}, gone, stuck))
    assert cancelled == [True]

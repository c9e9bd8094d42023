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


async def read(*events: Event) -> list[bytes]:
    """Every event sent when another thread delivers `events`."""
    queue = EventQueue()
    threading.Thread(target=lambda: [queue.deliver(event) for event in events[1:]]).start()
    sent = b"".join([chunk async for chunk in stream(events[0], queue, to_bytes)])
    return [event + b"\n\n" for event in sent.split(b"\n\n")[:-1]]


def test_an_event_is_a_name_and_one_line_of_json() -> None:
    data = to_bytes(Text(0, "two\nlines\u2028🦩", [7], None)).decode()
    assert data.startswith("event: token\ndata: {") and data.endswith("}\n\n")
    assert len(data.splitlines()) == 3 and data.isascii()


def test_a_stream_ends_with_its_last_event() -> None:
    chunks = asyncio.run(read(Text(0, "a", [1], None), Finished(0, "stop", None), END))
    assert [chunk.split()[1] for chunk in chunks] == [b"token", b"done", b"end"]


def test_an_error_ends_the_stream_and_hides_the_inside() -> None:
    _, last = asyncio.run(read(Text(0, "a", [1], None), RuntimeError("secret")))
    assert last.startswith(b"event: error\n") and b"secret" not in last


def test_a_quiet_stream_sends_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.01)

    async def chunks() -> list[bytes]:
        queue = EventQueue()
        sent = stream(Text(0, "a", [1], None), queue, to_bytes)
        found = [await anext(sent) for _ in range(3)]
        queue.deliver(END)
        return [*found, *[chunk async for chunk in sent]]

    _, *pings, last = asyncio.run(chunks())
    assert len(pings) >= 2 and set(pings) == {b": ping\n\n"}
    assert last.startswith(b"event: end")


def test_events_that_have_come_together_are_sent_together() -> None:
    async def chunks() -> list[bytes]:
        queue = EventQueue()
        for event in (Text(0, "b", [2], None), Finished(0, "stop", None), END):
            queue.deliver(event)
        return [chunk async for chunk in stream(Text(0, "a", [1], None), queue, to_bytes)]

    first, rest = asyncio.run(chunks())
    assert (first.count(b"event: "), rest.count(b"event: ")) == (1, 3)


def test_a_stream_that_lags_behind_gives_way_to_others() -> None:
    """Thousands of events may wait for a client that reads slowly."""

    async def chunks() -> list[bytes]:
        queue = EventQueue()
        for i in range(100):
            queue.deliver(Text(0, "b", [i], None))
        queue.deliver(END)
        return [chunk async for chunk in stream(Text(0, "a", [1], None), queue, to_bytes)]

    found = [chunk.count(b"event: ") for chunk in asyncio.run(chunks())]
    assert max(found) == sse.AT_ONCE and sum(found) == 102


def test_no_event_of_a_hasty_thread_is_lost_or_late() -> None:
    """The consumer is woken once for many: it must not sleep while any is left."""
    num = 20_000

    async def taken() -> list[int]:
        queue, found = EventQueue(), list[int]()

        def hurry() -> None:
            for i in range(num):
                queue.deliver(Text(0, "", [i], None))

        thread = threading.Thread(target=hurry)
        thread.start()
        while len(found) < num:
            event = await queue.next(timeout=10)
            assert isinstance(event, Text), "an event waits, and nobody was woken"
            found += event.token_ids
        thread.join()
        return found

    assert asyncio.run(taken()) == list(range(num))


def test_who_waits_in_vain_gets_nothing_and_then_what_comes() -> None:
    async def taken() -> list[Event | None]:
        queue = EventQueue()
        nothing = await queue.next(timeout=0.01)
        threading.Timer(0.01, queue.deliver, [END]).start()
        return [nothing, await queue.next(timeout=10), *await queue.come(timeout=0.01)]

    assert asyncio.run(taken()) == [None, END]


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

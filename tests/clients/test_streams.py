import asyncio
import gc

import httpx
import pytest

from clients.fake_server import (
    DONE,
    END,
    START,
    TOKENS,
    WHOLE_STREAM,
    AsyncWorld,
    Body,
    OneChunkServer,
    Script,
    SyncWorld,
    serve,
    sse,
    streamed,
)
from flamingo_client import (
    AnswerError,
    AsyncFlamingoClient,
    ConnectionFailed,
    Done,
    End,
    FlamingoClient,
    FlamingoError,
    Hypothesis,
    Start,
    StreamError,
    Timings,
    Token,
    Usage,
)

EVENTS = [
    Start("gen-1", "tiny", Usage(prompt_tokens=9, media=1)),
    Token(0, "a", (7,)),
    Token(0, " cat", (8,), logprobs=[{"token": 8}]),
    Done(0, "stop", score=-0.5),
    End(Usage(9, 2, 4, 1), Timings(1.0, 2.5, 3.0, 4.0, 6.5)),
]


def test_a_stream_yields_typed_events_in_order(world: type[SyncWorld]) -> None:
    script = Script(streamed(WHOLE_STREAM))
    assert world(script).stream("hi", num_beams=2) == EVENTS
    assert script.body["stream"] is True
    assert script.requests[0].headers["Accept"] == "text/event-stream"


def test_async_equals_sync_on_a_real_server() -> None:
    with serve(OneChunkServer(WHOLE_STREAM, "end")) as url:
        assert SyncWorld(base_url=url).stream("hi") == EVENTS
        assert AsyncWorld(base_url=url).stream("hi") == EVENTS


def test_a_hypothesis_is_an_event_of_its_own(world: type[SyncWorld]) -> None:
    content = sse("hypothesis", index=1, text="a dog") + END
    assert world(Script(streamed(content))).stream("hi")[0] == Hypothesis(1, "a dog")


def test_comments_and_unknown_events_and_fields_are_ignored(world: type[SyncWorld]) -> None:
    content = b": ping\n\n" + sse("new", x=1) + sse("token", index=0, text="a", new=2) + END
    assert world(Script(streamed(content))).stream("hi")[0] == Token(0, "a", ())


def test_a_content_type_with_a_charset_is_a_stream(world: type[SyncWorld]) -> None:
    answer = streamed(WHOLE_STREAM, "text/event-stream; charset=utf-8")
    assert world(Script(answer)).stream("hi") == EVENTS


def test_an_answer_that_is_no_stream_raises(world: type[SyncWorld]) -> None:
    with pytest.raises(StreamError, match="expected text/event-stream, got text/html"):
        world(Script(streamed(b"<html>", "text/html"))).stream("hi")


def test_a_stream_that_ends_without_end_raises_after_its_events(world: type[SyncWorld]) -> None:
    driven = world(Script(streamed(START + TOKENS + DONE)))
    with pytest.raises(StreamError, match="stopped before its end"):
        driven.stream("hi")
    assert driven.seen == EVENTS[:4]


def test_an_error_event_raises_after_the_events_before_it(world: type[SyncWorld]) -> None:
    failed = sse("error", message="out of blocks", type="server_error", param=None, code="oom")
    driven = world(Script(streamed(START + failed + END)))
    with pytest.raises(StreamError, match="out of blocks") as caught:
        driven.stream("hi")
    assert driven.seen == EVENTS[:1]
    assert (caught.value.type, caught.value.param, caught.value.code) == (
        "server_error",
        None,
        "oom",
    )


def test_an_error_event_may_have_its_envelope(world: type[SyncWorld]) -> None:
    failed = sse("error", error={"message": "out of blocks", "code": "oom"})
    with pytest.raises(StreamError, match="out of blocks") as caught:
        world(Script(streamed(failed))).stream("hi")
    assert caught.value.code == "oom"


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"index": "0"}'])
def test_an_event_that_is_not_the_contracts_raises(world: type[SyncWorld], data: bytes) -> None:
    content = b"event: token\ndata: " + data + b"\n\n"
    with pytest.raises(AnswerError):
        world(Script(streamed(content + END))).stream("hi")


def test_a_connection_lost_in_mid_stream_raises_and_is_not_retried(world: type[SyncWorld]) -> None:
    app = OneChunkServer(START + TOKENS, "break_off")
    with serve(app) as url:
        driven = world(base_url=url)
        with pytest.raises(StreamError, match="stopped before its end: RemoteProtocol") as caught:
            driven.stream("hi")
    assert isinstance(caught.value.__cause__, httpx.RemoteProtocolError)
    assert (driven.seen, driven.slept, app.num_requests) == (EVENTS[:3], [], 1)


def test_a_stream_that_falls_silent_raises(world: type[SyncWorld]) -> None:
    with serve(OneChunkServer(START, "wait")) as url:
        driven = world(base_url=url, timeout=0.2)
        with pytest.raises(StreamError, match="ReadTimeout"):
            driven.stream("hi")


def test_a_connection_lost_after_end_is_no_error(world: type[SyncWorld]) -> None:
    with serve(OneChunkServer(WHOLE_STREAM, "break_off")) as url:
        assert world(base_url=url).stream("hi") == EVENTS


def test_a_server_that_is_not_there_is_a_connection_failure(world: type[SyncWorld]) -> None:
    with serve(OneChunkServer(b"", "end")) as url:
        pass
    driven = world(base_url=url, max_retries=1)
    with pytest.raises(ConnectionFailed):
        driven.stream("hi")
    assert len(driven.slept) == 1


def test_leaving_the_with_block_early_closes_the_connection(world: type[SyncWorld]) -> None:
    app = OneChunkServer(START + TOKENS, "wait")
    with serve(app) as url:
        assert world(base_url=url).first_event("hi") == EVENTS[0]
        assert app.has_client_left.wait(5)


def test_the_answer_is_closed_before_the_client_is(world: type[SyncWorld]) -> None:
    body = Body(WHOLE_STREAM)
    world(Script(streamed(body))).first_event("hi")
    assert body.is_closed


@pytest.mark.parametrize("content", [START, sse("error", message="no"), b"event: start\ndata\n\n"])
def test_the_answer_is_closed_when_the_stream_fails(world: type[SyncWorld], content: bytes) -> None:
    body = Body(content)
    with pytest.raises(FlamingoError):
        world(Script(streamed(body))).stream("hi")
    assert body.is_closed


def test_the_answer_is_closed_when_it_is_no_stream(world: type[SyncWorld]) -> None:
    body = Body(b"<html>")
    with pytest.raises(StreamError):
        world(Script(streamed(body, "text/html"))).stream("hi")
    assert body.is_closed


def test_closing_the_iterator_early_closes_the_connection() -> None:
    app = OneChunkServer(START, "wait")
    with serve(app) as url, FlamingoClient(url) as client:
        stream = client.stream("hi")
        next(stream)
        assert not app.has_client_left.is_set()
        stream.close()
        assert app.has_client_left.wait(5)
        assert list(stream) == []


def test_breaking_out_of_the_loop_closes_the_connection() -> None:
    app = OneChunkServer(START, "wait")
    with serve(app) as url, FlamingoClient(url) as client:
        for _ in client.stream("hi"):
            break
        gc.collect()
        assert app.has_client_left.wait(5)


def test_closing_the_async_iterator_early_closes_the_connection() -> None:
    app = OneChunkServer(START, "wait")

    async def run(url: str) -> None:
        async with AsyncFlamingoClient(url) as client:
            stream = client.stream("hi")
            await anext(stream)
            await stream.close()
            assert await asyncio.to_thread(app.has_client_left.wait, 5)

    with serve(app) as url:
        asyncio.run(run(url))


def test_cancelling_the_task_closes_the_connection() -> None:
    app = OneChunkServer(START, "wait")

    async def run(url: str) -> None:
        async with AsyncFlamingoClient(url) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    async for _ in client.stream("hi"):
                        pass
            assert await asyncio.to_thread(app.has_client_left.wait, 5)

    with serve(app) as url:
        asyncio.run(run(url))


def test_a_stream_nobody_reads_sends_nothing() -> None:
    script = Script()
    with FlamingoClient(transport=httpx.MockTransport(script)) as client:
        client.stream("hi").close()
    assert script.requests == []


def test_two_streams_share_one_client() -> None:
    with serve(OneChunkServer(WHOLE_STREAM, "end")) as url, FlamingoClient(url) as client:
        with client.stream("a") as first, client.stream("b") as second:
            pairs = list(zip(first, second, strict=True))
    assert [left for left, _ in pairs] == [right for _, right in pairs] == EVENTS

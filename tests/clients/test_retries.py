import httpx
import pytest

from clients.fake_server import Body, Script, SyncWorld, answer, refusal, streamed
from flamingo_client import (
    AnswerError,
    ConnectionFailed,
    FlamingoClient,
    FlamingoError,
    RateLimitError,
    StreamError,
    TimedOut,
    UnavailableError,
)
from flamingo_client._retry import Retry

REFUSED = httpx.ConnectError("refused")


@pytest.mark.parametrize("status", [429, 503, None])
def test_a_passing_failure_is_tried_again(world: type[SyncWorld], status: int | None) -> None:
    script = Script(refusal(status) if status else REFUSED, answer())
    assert world(script).call("generate", "hi").text == "a cat"
    assert script.requests[0].content == script.requests[1].content


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 415, 422, 500, 502])
def test_a_failure_that_would_repeat_itself_is_not_tried_again(
    world: type[SyncWorld], status: int
) -> None:
    script = Script(refusal(status), answer())
    with pytest.raises(FlamingoError):
        world(script).call("generate", "hi")
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("Tue, 14 Nov 2023 22:13:32 GMT", 12.0), ("3600", 30.0)],
)
def test_retry_after_is_honoured_up_to_a_cap(
    world: type[SyncWorld], value: str, seconds: float
) -> None:
    driven = world(Script(refusal(429, Retry_After=value), answer()))
    driven.call("generate", "hi")
    assert driven.slept == [seconds]


def test_after_the_last_attempt_the_error_comes_out(world: type[SyncWorld]) -> None:
    script = Script(refusal(503), REFUSED, refusal(429, "full"))
    driven = world(script, max_retries=2)
    with pytest.raises(RateLimitError, match="full"):
        driven.call("generate", "hi")
    assert len(driven.slept) == 2


def test_without_retries_the_first_error_comes_out(world: type[SyncWorld]) -> None:
    driven = world(Script(refusal(503)), max_retries=0)
    with pytest.raises(UnavailableError):
        driven.call("generate", "hi")
    assert driven.slept == []


def test_a_connection_failure_keeps_its_cause(world: type[SyncWorld]) -> None:
    with pytest.raises(ConnectionFailed, match="ConnectError refused") as caught:
        world(Script(REFUSED), max_retries=0).call("generate", "hi")
    assert caught.value.__cause__ is REFUSED


def test_a_slow_answer_is_not_asked_for_twice(world: type[SyncWorld]) -> None:
    script = Script(httpx.ReadTimeout("slow"), answer())
    with pytest.raises(TimedOut):
        world(script).call("generate", "hi")
    assert len(script.requests) == 1


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_breaks_off_is_not_asked_for_twice(
    world: type[SyncWorld], status: int
) -> None:
    body = Body(b'{"id": ', lost=httpx.ReadError("reset"))
    script = Script(httpx.Response(status, stream=body), answer())
    with pytest.raises(AnswerError, match="broke off: ReadError reset"):
        world(script).call("generate", "hi")
    assert (len(script.requests), body.is_closed) == (1, True)


def test_a_stream_is_tried_again_before_it_begins(world: type[SyncWorld]) -> None:
    script = Script(refusal(429, Retry_After="1"), REFUSED, streamed(b""))
    with pytest.raises(StreamError):
        world(script).stream("hi")
    assert len(script.requests) == 3


def test_backoff_doubles_to_a_cap_with_full_jitter() -> None:
    longest = Retry(max_retries=9, uniform=max)
    shortest = Retry(max_retries=9, uniform=min)
    failed = range(1, 7)
    assert [longest.pause(n, ConnectionFailed()) for n in failed] == [0.5, 1, 2, 4, 8, 8]
    assert [shortest.pause(n, ConnectionFailed()) for n in failed] == [0.0] * 6


def test_backoff_is_random(world: type[SyncWorld]) -> None:
    driven = world(Script(*[REFUSED] * 20, answer()), max_retries=20)
    driven.call("generate", "hi")
    assert len(set(driven.slept)) == 20
    assert max(driven.slept) <= 8.0


def test_fewer_than_no_retries_are_refused() -> None:
    with pytest.raises(ValueError, match="max_retries must be 0 or more, not -1"):
        FlamingoClient(max_retries=-1)

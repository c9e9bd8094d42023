"""What the client tests talk to: scripted answers, and a real server in a thread."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from flamingo_client import AsyncFlamingoClient, Event, FlamingoClient

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "cached_prompt_tokens": 4, "media": 1}
TIMINGS = {"queue_ms": 1, "media_ms": 2.5, "prefill_ms": 3.0, "decode_ms": 4.0, "ttft_ms": 6.5}
CHOICE = {"index": 0, "text": "a cat", "token_ids": [7, 8], "finish_reason": "stop", "score": -0.5}
GENERATION = {
    "id": "gen-1",
    "model": "tiny",
    "choices": [CHOICE],
    "usage": USAGE,
    "timings": TIMINGS,
}
CANDIDATES = [
    {"index": 1, "text": "cat", "sum": -1, "mean": -0.5, "score": -1.0, "probability": 0.75},
    {"index": 0, "text": "dog", "sum": -2.5, "mean": -2.5, "score": -2.5, "probability": 0.25},
]
CLASSIFICATION = {**GENERATION, "id": "cls-1", "candidates": CANDIDATES}
SCORES = {
    **GENERATION,
    "id": "scr-1",
    "continuations": [
        {
            "index": 0,
            "text": "cat",
            "sum": -1.5,
            "mean": -0.75,
            "tokens": [
                {"token_id": 7, "token": "c", "logprob": -1},
                {"token_id": 8, "token": "at", "logprob": -0.5},
            ],
        }
    ],
}


ADAPTER = {"name": "pets", "digest": "4f0c", "parameters": 12, "requests": 1, "card": {"data": {}}}


def sse(event: str, **data: object) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


START = sse("start", id="gen-1", model="tiny", usage={"prompt_tokens": 9, "media": 1})
TOKENS = sse("token", index=0, text="a", token_ids=[7]) + sse(
    "token", index=0, text=" cat", token_ids=[8], logprobs=[{"token": 8}]
)
DONE = sse("done", index=0, finish_reason="stop", score=-0.5)
END = sse("end", usage=USAGE, timings=TIMINGS)
WHOLE_STREAM = START + TOKENS + DONE + END


def answer(status: int = 200, json: object = GENERATION, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=json, headers=named)


def refusal(status: int, message: str = "no", **headers: str) -> httpx.Response:
    error = {"message": message, "type": "t", "param": "p", "code": "c"}
    return answer(status, {"error": error}, **headers)


def streamed(content: "bytes | Body", content_type: str = "text/event-stream") -> httpx.Response:
    body = content if isinstance(content, Body) else Body(content)
    return httpx.Response(200, stream=body, headers={"Content-Type": content_type})


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that knows whether it was closed; `lost` is raised after its bytes."""

    def __init__(self, content: bytes, lost: Exception | None = None) -> None:
        self.content = content
        self.lost = lost
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield self.content
        if self.lost:
            raise self.lost

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.close()


class Script:
    """Plays its answers in order, raising those that are exceptions, and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        played = self.answers.pop(0)
        if isinstance(played, Exception):
            raise played
        return played

    @property
    def body(self) -> dict[str, Any]:
        """The body of the first request."""
        return dict(json.loads(self.requests[0].content))


class SyncWorld:
    """Drives the synchronous client: one claim, tested on both through the same two methods."""

    def __init__(self, script: Script | None = None, **settings: Any) -> None:
        if script is not None:
            settings["transport"] = httpx.MockTransport(script)
        self.settings = {"clock": lambda: NOW, **settings}
        self.slept: list[float] = []
        self.seen: list[Event] = []

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        with FlamingoClient(sleep=self.slept.append, **self.settings) as client:
            return getattr(client, method)(*args, **options)

    def stream(self, *args: Any, **options: Any) -> list[Event]:
        with FlamingoClient(sleep=self.slept.append, **self.settings) as client:
            for event in client.stream(*args, **options):
                self.seen.append(event)
        return self.seen

    def first_event(self, *args: Any, **options: Any) -> Event:
        with FlamingoClient(sleep=self.slept.append, **self.settings) as client:
            with client.stream(*args, **options) as stream:
                return next(stream)


class AsyncWorld(SyncWorld):
    """Drives the asynchronous client."""

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncFlamingoClient(sleep=self._sleep, **self.settings) as client:
                return await getattr(client, method)(*args, **options)

        return asyncio.run(run())

    def stream(self, *args: Any, **options: Any) -> list[Event]:
        async def run() -> None:
            async with AsyncFlamingoClient(sleep=self._sleep, **self.settings) as client:
                async for event in client.stream(*args, **options):
                    self.seen.append(event)

        asyncio.run(run())
        return self.seen

    def first_event(self, *args: Any, **options: Any) -> Event:
        async def run() -> Event:
            async with AsyncFlamingoClient(sleep=self._sleep, **self.settings) as client:
                async with client.stream(*args, **options) as stream:
                    return await anext(stream)

        return asyncio.run(run())


Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class OneChunkServer:
    """Streams one chunk of events, then ends, breaks the connection, or waits for the client."""

    def __init__(self, content: bytes, then: str) -> None:
        self.content = content
        self.then = then
        self.num_requests = 0
        self.has_client_left = threading.Event()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.num_requests += 1
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.content, "more_body": True})
        await getattr(self, self.then)(receive, send)

    async def end(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body"})

    async def break_off(self, receive: Receive, send: Send) -> None:
        raise ConnectionResetError("the test breaks the connection")

    async def wait(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.has_client_left.set()


@contextmanager
def serve(app: Callable[[dict[str, Any], Receive, Send], Awaitable[None]]) -> Iterator[str]:
    """The URL of a real server of `app`."""
    config = uvicorn.Config(app, lifespan="off", ws="none", log_level=100)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

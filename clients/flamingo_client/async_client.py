"""The asynchronous client: `client.py` with awaits, line for line."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from os import PathLike
from typing import Self, Unpack

import httpx

from flamingo_client._json import Json, object_from
from flamingo_client._protocol import (
    DEFAULT_TIMEOUT,
    EventReader,
    Timeout,
    adapter_from,
    adapters_from,
    adapters_request,
    classification_from,
    classify_request,
    embeddings_from,
    embeddings_request,
    generate_request,
    generation_from,
    load_adapter_request,
    probe_request,
    receiving,
    score_request,
    scores_from,
    sending,
    settings_from,
    still_running_from,
    stream_request,
    unload_adapter_request,
)
from flamingo_client._retry import Retry
from flamingo_client.errors import ConnectionFailed, FlamingoError, UnavailableError, error_from
from flamingo_client.options import (
    ClassifyOptions,
    EmbeddingsOptions,
    GenerateOptions,
    ScoreOptions,
)
from flamingo_client.parts import ImagePart, Prompt, VideoPart
from flamingo_client.types import Adapter, Classification, Embeddings, Event, Generation, Scores


class AsyncEventStream(AsyncIterator[Event]):
    """The events of one generation. The request goes out when the first event is asked for.

    Closing it, or leaving its `async with` block, closes the connection: the server cancels the
    rest. Only breaking out of an `async for` leaves the closing to the event loop, later.
    """

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def close(self) -> None:
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class AsyncFlamingoClient:
    """`FlamingoClient` for asyncio, the same method by method; inject `sleep` for another loop."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings_from(base_url, api_key, timeout)
        self._retry = Retry(max_retries)
        self._http = httpx.AsyncClient(transport=transport)
        self._sleep = sleep
        self._clock = clock

    async def generate(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """The whole answer, once it is there. Without a prompt the options have a `task`."""
        response = await self._send(generate_request(self._settings, prompt, options))
        return generation_from(await self._read(response))

    def stream(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncEventStream:
        """The answer as it is made. Nothing is retried once the stream has begun."""
        return AsyncEventStream(self._events(stream_request(self._settings, prompt, options)))

    async def classify(
        self,
        prompt: Prompt | None = None,
        *,
        candidates: Sequence[str],
        **options: Unpack[ClassifyOptions],
    ) -> Classification:
        """The candidates, likeliest first. Without a prompt the options have a `task`."""
        request = classify_request(self._settings, prompt, candidates, options)
        return classification_from(await self._read(await self._send(request)))

    async def score(
        self,
        prompt: Prompt | None = None,
        *,
        continuations: Sequence[str],
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """The log-probability of every token of every continuation."""
        request = score_request(self._settings, prompt, continuations, options)
        return scores_from(await self._read(await self._send(request)))

    async def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that requests may name, as `adapter="..."`."""
        return adapters_from(await self._read(await self._send(adapters_request(self._settings))))

    async def load_adapter(self, name: str, path: str | PathLike[str]) -> Adapter:
        """Has the server load one of its own files, in a folder that its operator allows."""
        request = load_adapter_request(self._settings, name, path)
        return adapter_from(await self._read(await self._send(request)))

    async def unload_adapter(self, name: str) -> int:
        """No new request may name it; the number of those that still run with it, and finish."""
        request = unload_adapter_request(self._settings, name)
        return still_running_from(await self._read(await self._send(request)))

    async def embeddings(
        self, media: Sequence[ImagePart | VideoPart], **options: Unpack[EmbeddingsOptions]
    ) -> Embeddings:
        """Where the vision tower sees each picture or film."""
        request = embeddings_request(self._settings, media, options)
        return embeddings_from(await self._read(await self._send(request)))

    async def health(self) -> bool:
        """Whether the server's process lives. Never retried: a probe asks about now."""
        return await self._probe("/healthz")

    async def ready(self) -> bool:
        """Whether the server would take a request now: its model is loaded, its engine steps."""
        return await self._probe("/readyz")

    async def version(self) -> dict[str, Json]:
        """What the server says of its version."""
        response = await self._send(self._settings.request("GET", "/version"))
        return object_from(await self._read(response))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _events(self, request: httpx.Request) -> AsyncGenerator[Event, None]:
        lost: httpx.RequestError | None = None
        async with aclosing(await self._send(request)) as response:
            reader = EventReader(response)
            try:
                async for chunk in response.aiter_bytes():
                    for event in reader.feed(chunk):
                        yield event
            except httpx.RequestError as error:
                lost = error
        reader.finish(lost)

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """The successful answer, its body unread, after as many attempts as it takes."""
        num_failed = 0
        while True:
            try:
                return await self._attempt(request)
            except FlamingoError as error:
                num_failed += 1
                pause = self._retry.pause(num_failed, error)
                if pause is None:
                    raise
            await self._sleep(pause)

    async def _attempt(self, request: httpx.Request) -> httpx.Response:
        with sending():
            response = await self._http.send(request, stream=True)
        if response.is_success:
            return response
        body = await self._read(response)
        raise error_from(response.status_code, body, response.headers, clock=self._clock)

    async def _read(self, response: httpx.Response) -> bytes:
        async with aclosing(response):
            with receiving():
                return await response.aread()

    async def _probe(self, path: str) -> bool:
        try:
            await self._read(await self._attempt(probe_request(self._settings, path)))
        except (ConnectionFailed, UnavailableError):
            return False
        return True

"""The synchronous client: sends, reads, sleeps. It decides nothing: see `_protocol`, `_retry`."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
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


class EventStream(Iterator[Event]):
    """The events of one generation. The request goes out when the first event is asked for.

    Closing it, or leaving its `with` block, closes the connection: the server cancels the rest.
    """

    def __init__(self, events: Generator[Event, None, None]) -> None:
        self._events = events

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class FlamingoClient:
    """Speaks to one server. Safe to share between threads; close it, or use it in a `with` block.

    `timeout` is in seconds. `base_url` and `api_key` default to FLAMINGO_URL and FLAMINGO_API_KEY.
    Every call raises a `FlamingoError`; the constructor raises ValueError for bad settings.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings_from(base_url, api_key, timeout)
        self._retry = Retry(max_retries)
        self._http = httpx.Client(transport=transport)
        self._sleep = sleep
        self._clock = clock

    def generate(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """The whole answer, once it is there. Without a prompt the options have a `task`."""
        response = self._send(generate_request(self._settings, prompt, options))
        return generation_from(self._read(response))

    def stream(
        self, prompt: Prompt | None = None, **options: Unpack[GenerateOptions]
    ) -> EventStream:
        """The answer as it is made. Nothing is retried once the stream has begun."""
        return EventStream(self._events(stream_request(self._settings, prompt, options)))

    def classify(
        self,
        prompt: Prompt | None = None,
        *,
        candidates: Sequence[str],
        **options: Unpack[ClassifyOptions],
    ) -> Classification:
        """The candidates, likeliest first. Without a prompt the options have a `task`."""
        request = classify_request(self._settings, prompt, candidates, options)
        return classification_from(self._read(self._send(request)))

    def score(
        self,
        prompt: Prompt | None = None,
        *,
        continuations: Sequence[str],
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """The log-probability of every token of every continuation."""
        request = score_request(self._settings, prompt, continuations, options)
        return scores_from(self._read(self._send(request)))

    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters that requests may name, as `adapter="..."`."""
        return adapters_from(self._read(self._send(adapters_request(self._settings))))

    def load_adapter(self, name: str, path: str | PathLike[str]) -> Adapter:
        """Has the server load one of its own files, in a folder that its operator allows."""
        request = load_adapter_request(self._settings, name, path)
        return adapter_from(self._read(self._send(request)))

    def unload_adapter(self, name: str) -> int:
        """No new request may name it; the number of those that still run with it, and finish."""
        request = unload_adapter_request(self._settings, name)
        return still_running_from(self._read(self._send(request)))

    def embeddings(
        self, media: Sequence[ImagePart | VideoPart], **options: Unpack[EmbeddingsOptions]
    ) -> Embeddings:
        """Where the vision tower sees each picture or film."""
        request = embeddings_request(self._settings, media, options)
        return embeddings_from(self._read(self._send(request)))

    def health(self) -> bool:
        """Whether the server's process lives. Never retried: a probe asks about now."""
        return self._probe("/healthz")

    def ready(self) -> bool:
        """Whether the server would take a request now: its model is loaded, its engine steps."""
        return self._probe("/readyz")

    def version(self) -> dict[str, Json]:
        """What the server says of its version."""
        return object_from(self._read(self._send(self._settings.request("GET", "/version"))))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _events(self, request: httpx.Request) -> Generator[Event, None, None]:
        lost: httpx.RequestError | None = None
        with closing(self._send(request)) as response:
            reader = EventReader(response)
            try:
                for chunk in response.iter_bytes():
                    yield from reader.feed(chunk)
            except httpx.RequestError as error:
                lost = error
        reader.finish(lost)

    def _send(self, request: httpx.Request) -> httpx.Response:
        """The successful answer, its body unread, after as many attempts as it takes."""
        num_failed = 0
        while True:
            try:
                return self._attempt(request)
            except FlamingoError as error:
                num_failed += 1
                pause = self._retry.pause(num_failed, error)
                if pause is None:
                    raise
            self._sleep(pause)

    def _attempt(self, request: httpx.Request) -> httpx.Response:
        with sending():
            response = self._http.send(request, stream=True)
        if response.is_success:
            return response
        body = self._read(response)
        raise error_from(response.status_code, body, response.headers, clock=self._clock)

    def _read(self, response: httpx.Response) -> bytes:
        with closing(response), receiving():
            return response.read()

    def _probe(self, path: str) -> bool:
        try:
            self._read(self._attempt(probe_request(self._settings, path)))
        except (ConnectionFailed, UnavailableError):
            return False
        return True

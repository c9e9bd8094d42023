"""The contract without a socket: requests out, answers in. Both clients are shells around it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from typing import TypeAlias
from urllib.parse import quote

import httpx

from flamingo_client._json import Fields, object_from
from flamingo_client._version import __version__
from flamingo_client.errors import (
    AnswerError,
    ConnectionFailed,
    StreamError,
    TimedOut,
    stream_error_from,
)
from flamingo_client.options import (
    ClassifyOptions,
    EmbeddingsOptions,
    GenerateOptions,
    ScoreOptions,
    fields_from,
)
from flamingo_client.parts import ImagePart, Prompt, VideoPart, parts_from
from flamingo_client.sse import ServerSentEvent, SSEDecoder
from flamingo_client.types import (
    Adapter,
    Classification,
    Done,
    Embeddings,
    End,
    Event,
    Generation,
    Hypothesis,
    Scores,
    Start,
    Token,
)

Timeout: TypeAlias = httpx.Timeout | float | None

DEFAULT_URL = "http://127.0.0.1:8000"
# An answer that is not streamed is silent until it is whole, so reading gets minutes.
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=10.0)
PROBE_TIMEOUT = httpx.Timeout(5.0)
EVENT_STREAM = "text/event-stream"
EVENTS: dict[str, Callable[[Fields], Event]] = {
    "start": Start.from_fields,
    "token": Token.from_fields,
    "hypothesis": Hypothesis.from_fields,
    "done": Done.from_fields,
    "end": End.from_fields,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is, and how to speak to it."""

    base_url: str
    api_key: str | None = field(repr=False)
    timeout: httpx.Timeout

    def request(self, method: str, path: str, body: object = None) -> httpx.Request:
        """A request ready to send, as often as needed."""
        headers = {"User-Agent": f"flamingo-client/{__version__}", "Accept": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        timeout = {"timeout": self.timeout.as_dict()}
        url = self.base_url + path
        return httpx.Request(method, url, headers=headers, json=body, extensions=timeout)


def settings_from(
    base_url: str | None,
    api_key: str | None,
    timeout: Timeout,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Arguments, else FLAMINGO_URL and FLAMINGO_API_KEY, else the defaults; `timeout` in seconds.

    Raises ValueError for a URL that is not http(s), or a key that no header can carry.
    """
    if base_url is None:
        base_url = environ.get("FLAMINGO_URL") or DEFAULT_URL
    if api_key is None:
        api_key = environ.get("FLAMINGO_API_KEY")
    return Settings(_checked_url(base_url), _checked_key(api_key), httpx.Timeout(timeout))


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {url!r}: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"base_url {url!r} must look like {DEFAULT_URL}")
    return url.rstrip("/")


def _checked_key(key: str | None) -> str | None:
    """None for an empty key, which says to send none."""
    # Refused here, because the error of the HTTP layer would print the key.
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError("the API key holds a space, a line end or a character outside ASCII")
    return key or None


def generate_request(
    settings: Settings, prompt: Prompt | None, options: GenerateOptions
) -> httpx.Request:
    """Asks for a whole answer. Raises TypeError for an unknown option, ValueError for a prompt."""
    body = {**_prompt(prompt), **fields_from(options)}
    return settings.request("POST", "/v1/generate", body)


def stream_request(
    settings: Settings, prompt: Prompt | None, options: GenerateOptions
) -> httpx.Request:
    """Asks for a stream. Raises as `generate_request`."""
    body = {**_prompt(prompt), **fields_from(options), "stream": True}
    request = settings.request("POST", "/v1/generate", body)
    request.headers["Accept"] = EVENT_STREAM
    return request


def classify_request(
    settings: Settings,
    prompt: Prompt | None,
    candidates: Sequence[str],
    options: ClassifyOptions,
) -> httpx.Request:
    """Asks which of the candidates goes on best. Raises as `generate_request`."""
    fields = {
        "candidates": _texts("candidates", candidates),
        **fields_from(options, ClassifyOptions),
    }
    return settings.request("POST", "/v1/classify", {**_prompt(prompt), **fields})


def score_request(
    settings: Settings,
    prompt: Prompt | None,
    continuations: Sequence[str],
    options: ScoreOptions,
) -> httpx.Request:
    """Asks how likely the continuations are. Raises as `generate_request`."""
    texts = _texts("continuations", continuations)
    fields = {"continuations": texts, **fields_from(options, ScoreOptions)}
    return settings.request("POST", "/v1/score", {**_prompt(prompt), **fields})


def embeddings_request(
    settings: Settings, media: Sequence[ImagePart | VideoPart], options: EmbeddingsOptions
) -> httpx.Request:
    """Asks where pictures and films lie. Raises TypeError for an unknown option or a lone part."""
    if isinstance(media, str | Mapping):
        raise TypeError("embeddings takes a list of pictures and films")
    fields = fields_from(options, EmbeddingsOptions)
    body = {"input": list(media), "encoding_format": "base64", **fields}
    return settings.request("POST", "/v1/embeddings", body)


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):  # its letters would be sent, one by one
        raise TypeError(f"{name} takes a list of strings, not one string")
    return list(texts)


def _prompt(prompt: Prompt | None) -> dict[str, object]:
    """Nothing for None: the options then have a task."""
    return {} if prompt is None else {"prompt": parts_from(prompt)}


def adapters_request(settings: Settings) -> httpx.Request:
    """Asks which adapters are loaded."""
    return settings.request("GET", "/v1/adapters")


def load_adapter_request(settings: Settings, name: str, path: str | PathLike[str]) -> httpx.Request:
    """Asks the server to load one of its own files."""
    return settings.request("POST", "/v1/adapters", {"name": name, "path": fspath(path)})


def unload_adapter_request(settings: Settings, name: str) -> httpx.Request:
    """Asks that no new request may name it."""
    return settings.request("DELETE", f"/v1/adapters/{quote(name, safe='')}")


def probe_request(settings: Settings, path: str) -> httpx.Request:
    """Asks whether the server is there. A process that hangs must not hang its probe."""
    return replace(settings, timeout=PROBE_TIMEOUT).request("GET", path)


def generation_from(body: bytes) -> Generation:
    """The answer that a body holds. Raises AnswerError if it is not one."""
    return Generation.from_fields(Fields(object_from(body)))


def classification_from(body: bytes) -> Classification:
    """As `generation_from`."""
    return Classification.from_fields(Fields(object_from(body)))


def scores_from(body: bytes) -> Scores:
    """As `generation_from`."""
    return Scores.from_fields(Fields(object_from(body)))


def adapters_from(body: bytes) -> tuple[Adapter, ...]:
    """As `generation_from`."""
    return tuple(map(Adapter.from_fields, Fields(object_from(body)).children("adapters")))


def adapter_from(body: bytes) -> Adapter:
    """As `generation_from`."""
    return Adapter.from_fields(Fields(object_from(body)))


def still_running_from(body: bytes) -> int:
    """As `generation_from`."""
    return Fields(object_from(body)).whole("requests", 0)


def embeddings_from(body: bytes) -> Embeddings:
    """As `generation_from`."""
    return Embeddings.from_fields(Fields(object_from(body)))


@contextmanager
def sending() -> Iterator[None]:
    """Around the sending of a request, until its status is known: raises ConnectionFailed."""
    try:
        yield
    except httpx.ReadTimeout as error:
        raise TimedOut("the answer did not begin within the read timeout") from error
    except httpx.RequestError as error:
        raise ConnectionFailed(f"no answer from the server: {_reason(error)}") from error


@contextmanager
def receiving() -> Iterator[None]:
    """Around the reading of a body: raises AnswerError."""
    try:
        yield
    except httpx.RequestError as error:
        raise AnswerError(f"the answer broke off: {_reason(error)}") from error


def _reason(error: httpx.RequestError) -> str:
    return f"{type(error).__name__} {error}".rstrip()


class EventReader:
    """Turns the bytes of one streamed answer into events, and knows whether it ended well."""

    def __init__(self, response: httpx.Response) -> None:
        """Raises StreamError if the answer is not a stream."""
        media_type = response.headers.get("Content-Type", "")
        if media_type.partition(";")[0].strip().lower() != EVENT_STREAM:
            raise StreamError(f"expected {EVENT_STREAM}, got {media_type or 'no content type'}")
        self._decoder = SSEDecoder()
        self._is_ended = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that `chunk` completes. Raises StreamError at an `error` event."""
        for sent in self._decoder.feed(chunk):
            if (event := _event_from(sent)) is not None:
                self._is_ended |= isinstance(event, End)
                yield event

    def finish(self, cause: httpx.RequestError | None = None) -> None:
        """To be called when no bytes are left. Raises StreamError unless `end` was seen."""
        if not self._is_ended:
            reason = f": {_reason(cause)}" if cause else ""
            raise StreamError(f"the stream stopped before its end{reason}") from cause


def _event_from(sent: ServerSentEvent) -> Event | None:
    """None for an event that this version does not know."""
    if sent.event == "error":
        raise stream_error_from(sent.data)
    make = EVENTS.get(sent.event)
    return make(Fields(object_from(sent.data))) if make else None

"""Everything the client raises.

FlamingoError
  * APIError                   the server answered, and the answer is no
    + BadRequestError          400, 422 and every 4xx without a class of its own
    + AuthenticationError      401
    + ForbiddenError           403
    + NotFoundError            404
    + DeadlineError            408
    + TooLargeError            413
    + UnsupportedMediaError    415
    + RateLimitError           429, retried
    + ServerError              5xx
      - UnavailableError       503, retried
  * ConnectionFailed           no byte of an answer came, retried
    + TimedOut                 the request went out, the answer took too long; not retried
  * AnswerError                the answer broke off, or is not what the contract says
  * StreamError                a stream failed after it began
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import ClassVar

import httpx

MAX_MESSAGE_CHARS = 500


class FlamingoError(Exception):
    """Base of all errors of this package."""

    is_retryable: ClassVar[bool] = False
    retry_after: float | None = None


class APIError(FlamingoError):
    """The server refused: `status` is the HTTP status, the rest is its error object.

    `retry_after` is the seconds the server asked to wait, None when it named none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def __str__(self) -> str:
        where = f", {self.param}" if self.param else ""
        return f"{self.message} (HTTP {self.status}{where})"


class BadRequestError(APIError):
    """The request is malformed, or a field is out of range."""


class AuthenticationError(APIError):
    """The API key is missing or wrong."""


class ForbiddenError(APIError):
    """The key is good, but this is not allowed (a media host, for example)."""


class NotFoundError(APIError):
    """No such model, adapter or media id."""


class DeadlineError(APIError):
    """The request's own `deadline_ms` passed before it was answered."""


class TooLargeError(APIError):
    """Too many bytes, pixels, frames or tokens: the message says which, and the limit."""


class UnsupportedMediaError(APIError):
    """A media part is neither a picture nor a film the server can decode."""


class RateLimitError(APIError):
    """The queue is full."""

    is_retryable = True


class ServerError(APIError):
    """The server failed."""


class UnavailableError(ServerError):
    """The server is loading its model, or draining before it stops."""

    is_retryable = True


class ConnectionFailed(FlamingoError):
    """No byte of an answer came: refused, reset, or no connection in time."""

    is_retryable = True


class TimedOut(ConnectionFailed):
    """The server took the request, but its answer did not begin within the read timeout."""

    # The server is alive and slow: sending the work again would only make it slower.
    is_retryable = False


class AnswerError(FlamingoError):
    """The answer broke off, or is not what the contract says."""


class StreamError(FlamingoError):
    """A stream failed after it began; what it had yielded until then is good.

    `type`, `param` and `code` are those of the server's `error` event, None without one.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.param = param
        self.code = code


CLASS_OF_STATUS: dict[int, type[APIError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    408: DeadlineError,
    413: TooLargeError,
    415: UnsupportedMediaError,
    429: RateLimitError,
    503: UnavailableError,
}
CLASS_OF_FAMILY: dict[int, type[APIError]] = {4: BadRequestError, 5: ServerError}


def error_from(
    status: int,
    body: bytes,
    headers: Mapping[str, str],
    *,
    clock: Callable[[], float] = time.time,
) -> APIError:
    """The error that a refused request means.

    `clock` gives seconds since the epoch: a `Retry-After` date is turned into seconds by it.
    """
    kind = CLASS_OF_STATUS.get(status) or CLASS_OF_FAMILY.get(status // 100, APIError)
    type_, param, code = _labels(_error_object(body))
    wait = _retry_after(httpx.Headers(headers).get("Retry-After"), clock)
    message = _message(status, body)
    return kind(status, message, type=type_, param=param, code=code, retry_after=wait)


def stream_error_from(data: str) -> StreamError:
    """The error that the data of an `error` event means."""
    found = _error_object(data.encode())
    type_, param, code = _labels(found)
    message = found.get("message") or "the server ended the stream with an error"
    return StreamError(str(message), type=type_, param=param, code=code)


def _error_object(body: bytes) -> dict[str, object]:
    """The error object, with or without its `error` envelope; empty if there is none."""
    try:
        data = json.loads(body)
    except ValueError:
        return {}
    if isinstance(data, dict) and isinstance(data.get("error"), dict):
        data = data["error"]
    return data if isinstance(data, dict) else {}


def _labels(found: Mapping[str, object]) -> tuple[str | None, str | None, str | None]:
    values = (found.get(name) for name in ("type", "param", "code"))
    type_, param, code = (None if value is None else str(value) for value in values)
    return type_, param, code


def _message(status: int, body: bytes) -> str:
    """What went wrong, in words. A proxy answers with a page of its own instead of an object."""
    message = _error_object(body).get("message")
    if isinstance(message, str) and message:
        return message
    page = body.decode("utf-8", "replace").strip()
    return page[:MAX_MESSAGE_CHARS] or _phrase(status)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "the server gave no reason"


def _retry_after(value: str | None, clock: Callable[[], float]) -> float | None:
    """Seconds to wait, never negative; None if the header is absent or unreadable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, clock)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str, clock: Callable[[], float]) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - clock()
    except (ValueError, OverflowError):
        return math.nan

"""Every error a client can meet. Class decides the HTTP status; the message says what to change.

FlamingoError
├── BadRequest         400  malformed
├── Unauthorized       401  no key, or a wrong one
├── Forbidden          403  not allowed: a media host, a file path
├── NotFound           404  unknown id or model
├── DeadlineExceeded   408  past the client's own deadline
├── Conflict           409  the name is taken
├── TooLarge           413  bytes, pixels, frames or tokens over a limit
├── UnsupportedMedia   415  not a picture or film
├── OutOfRange         422  a field out of range
├── EngineFailure      500  our fault
└── Unavailable
    ├── QueueFull      429  try again after `retry_after` seconds
    └── Draining       503  loading or shutting down; likewise
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class FlamingoError(Exception):
    """Base of all. `param` names the place (`prompt[2].image`), `code` is stable snake_case."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """The contract's error object."""
        fields = {"message": self.message, "type": self.type}
        return {"error": {**fields, "param": self.param, "code": self.code}}


@contextmanager
def naming(param: str | None) -> Iterator[None]:
    """Errors from inside get `param` as their place, unless they name a nearer one."""
    try:
        yield
    except FlamingoError as error:
        error.param = error.param or param
        raise


class BadRequest(FlamingoError):
    """The request is malformed."""

    status, type = 400, "invalid_request_error"


class Unauthorized(FlamingoError):
    """The key is missing or unknown."""

    status, type = 401, "authentication_error"


class Forbidden(FlamingoError):
    """Well-formed, and not allowed here."""

    status, type = 403, "permission_error"


class NotFound(FlamingoError):
    """No such id, model or route."""

    status, type = 404, "not_found_error"


class DeadlineExceeded(FlamingoError):
    """The client's own deadline passed before the answer."""

    status, type = 408, "deadline_error"


class Conflict(FlamingoError):
    """What is there already stands in the way."""

    status, type = 409, "conflict_error"


class TooLarge(FlamingoError):
    """More bytes, pixels, frames or tokens than a limit allows."""

    status, type = 413, "too_large_error"


class UnsupportedMedia(FlamingoError):
    """The bytes are no picture or film this server reads."""

    status, type = 415, "unsupported_media_error"


class OutOfRange(FlamingoError):
    """A field has a value outside its range."""

    status, type = 422, "out_of_range_error"


class EngineFailure(FlamingoError):
    """The server failed; the request may be right."""


class Unavailable(FlamingoError):
    """Not now: `retry_after` seconds belong in the `Retry-After` header."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after = retry_after


class QueueFull(Unavailable):
    """Too many requests are waiting."""

    status, type = 429, "queue_full_error"


class Draining(Unavailable):
    """The server is loading its model or shutting down."""

    status, type = 503, "unavailable_error"

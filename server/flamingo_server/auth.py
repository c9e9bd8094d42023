"""The two guards around every route: who may come in, and how much they may bring.

Pure ASGI, outermost, deny by default; paths are compared as the server received them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import FlamingoError, TooLarge, Unauthorized
from .media.limits import human_bytes

PUBLIC = frozenset({"/healthz", "/readyz"})


async def send_error(send: Send, error: FlamingoError) -> None:
    body = json.dumps(error.to_dict()).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RequireKey:
    """401 unless `Authorization: Bearer KEY` names one of `keys`; with none set, all may come."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.is_allowed(scope):
            await self.app(scope, receive, send)
            return
        message = "send a valid API key in the header `Authorization: Bearer KEY`"
        await send_error(send, Unauthorized(message, code="invalid_api_key"))

    def is_allowed(self, scope: Scope) -> bool:
        if not self.digests or scope["path"] in PUBLIC:
            return True
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        sent = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(sent, known) for known in self.digests]  # all, always
        return scheme.lower() == "bearer" and any(matches)


class _BodyTooLarge(Exception):
    """Raised out of `receive` once too much has come."""


class LimitBody:
    """413 as soon as the declared or the received body passes `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_bytes:
            await send_error(send, self.error(int(declared)))
            return
        await self.count(scope, receive, send)

    async def count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever the app makes of a body cut off, before its answer starts ours goes first."""
        received, has_started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise _BodyTooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal has_started
            if received > self.max_bytes and not has_started:
                raise _BodyTooLarge
            has_started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except _BodyTooLarge:
            if not has_started:
                await send_error(send, self.error(received))

    def error(self, num_bytes: int) -> TooLarge:
        return TooLarge(
            f"the body is {human_bytes(num_bytes)} or more; the limit is "
            f"{human_bytes(self.max_bytes)}: send smaller or fewer pictures",
            code="body_too_large",
        )

"""Puts the rooms together: `create_app(settings)` is the whole server as an ASGI app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.quantize import QuantizeError

from . import __version__
from .auth import LimitBody, RequireKey
from .config import Settings
from .errors import BadRequest, FlamingoError, NotFound, OutOfRange, Unavailable
from .metrics import CountAnswers
from .protocol.prompt import TASK_KINDS
from .routes import adapters, classify, embeddings, generate, operation, render
from .service import Service
from .sse import to_error
from .threads import in_passing_thread

logger = logging.getLogger("flamingo_server")
LONGEST_NAME, LONGEST_MESSAGE = 80, 400  # what a client wrote is not sent back in full
OUT_OF_RANGE = ("greater_than", "less_than", "too_short", "too_long", "pattern", "finite_number")


def create_app(settings: Settings) -> FastAPI:
    """Loads the model in the background at start-up; until then /readyz says 503."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load(service))
        try:
            yield
        finally:
            await loading
            await service.close()

    app = FastAPI(
        title="Flamingo Server",
        version=__version__,
        description="Interleaved pictures and text in, streamed tokens out.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(generate.router)
    app.include_router(classify.router)
    app.include_router(embeddings.router)
    app.include_router(render.router)
    app.include_router(adapters.router)
    app.include_router(operation.router)
    app.add_exception_handler(FlamingoError, on_flamingo_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)
    app.add_middleware(LimitBody, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequireKey, keys=settings.api_keys)
    app.add_middleware(CountAnswers, counter=service.metrics.http)
    return app


async def load(service: Service) -> None:
    """Keeps the failure for whoever asks: /readyz, and the process's exit status."""
    try:
        await in_passing_thread(service.load)
    except (CheckpointError, QuantizeError) as error:
        service.load_error = error  # the process ends with it as its last line
    except Exception as error:
        service.load_error = error
        logger.error("the model could not be loaded: %s", error)


def error_response(request: Request, error: FlamingoError) -> Response:
    headers = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return JSONResponse(error.to_dict(), error.status, headers)


async def on_flamingo_error(request: Request, error: Exception) -> Response:
    return error_response(request, to_error(error))


async def on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request, from_validation(error.errors()[0]))


def from_validation(found: dict[str, Any]) -> FlamingoError:
    """The first thing wrong with a body, as one of our errors."""
    if found["type"] == "json_invalid":
        return BadRequest(f"the body is not JSON: {found['ctx']['error']}", code="invalid_json")
    param = to_param(list(found["loc"])[1:])
    if found["type"] == "extra_forbidden":
        name = str(found["loc"][-1])[:LONGEST_NAME]
        return BadRequest(
            f"unknown field {name!r}: leave it out", param=param, code="unknown_field"
        )
    if param is None and found["type"] in ("missing", "model_attributes_type"):
        message = "the body must be a JSON object, sent with `Content-Type: application/json`"
        return BadRequest(message, code="not_an_object")
    kind = OutOfRange if found["type"].startswith(OUT_OF_RANGE) else BadRequest
    said = found["msg"].removeprefix("Value error, ")[:LONGEST_MESSAGE]
    message = f"{param or 'the body'}: {said}"
    return kind(message, param=param, code=found["type"])


def to_param(place: list[Any]) -> str | None:
    """("prompt", 2, "image", "image", "url") → "prompt[2].image.url"; pydantic names the union's
    member where the wire has none."""
    path = ""
    for i, part in enumerate(place):
        if isinstance(part, int):
            path += f"[{part}]"
        elif not is_union_member(place, i):
            path += f".{part}" if path else str(part)
    return path.encode(errors="replace").decode()[:LONGEST_NAME] or None


def is_union_member(place: list[Any], i: int) -> bool:
    if i and isinstance(place[i - 1], int) and place[0] == "prompt":
        return place[i] in ("text", "image", "video")
    return place[:i] == ["task"] and place[i] in TASK_KINDS


async def on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(request, NotFound("no such route: see /docs", code="unknown_route"))
    body = BadRequest(str(error.detail), code="http_error").to_dict()
    return JSONResponse(body, error.status_code, error.headers)


async def on_bug(request: Request, error: Exception) -> Response:
    logger.exception("unhandled error", exc_info=error)
    request.app.state.service.metrics.http.labels("500").inc()  # it answers outside CountAnswers
    return error_response(request, to_error(error))

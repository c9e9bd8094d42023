"""`POST /v1/embeddings`: pooled features of the frozen vision tower, for pictures and films."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from ..engine.request import Embedded, Media
from ..errors import EngineFailure
from ..protocol.embeddings import EmbeddingsRequest, EmbeddingsResponse
from ..service import Service
from ..sse import EventQueue, to_error
from .generate import CLIENT_LEFT, STATUSES, json_response, next_event

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", responses={**STATUSES, 200: {"model": EmbeddingsResponse}})
async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
    """Where pictures and films lie, for finding those that look alike."""
    service: Service = request.app.state.service
    service.check_ready()
    service.check_model(body.model)
    found = await embed(body, request, service)
    if found is None:
        return CLIENT_LEFT
    return await json_response(lambda: answer(found, body, service))


async def embed(body: EmbeddingsRequest, request: Request, service: Service) -> Embedded | None:
    """A place in the queue first, then the pictures, then the engine. None: the client has gone."""
    queue = EventQueue()
    with service.engine.place():
        media = await load(body, service)
        handle = service.engine.embed(media, service.metrics.watch(queue.deliver))
    event = await next_event(queue, handle.cancel, request)
    if event is None:
        return None
    if isinstance(event, Exception):
        raise to_error(event)
    if not isinstance(event, Embedded):
        raise EngineFailure(f"the engine answered with {type(event).__name__}")
    return event


async def load(body: EmbeddingsRequest, service: Service) -> list[Media]:
    """Raises BadRequest, TooLarge, Forbidden, NotFound or UnsupportedMedia, naming the item."""
    parts = [item.part() for item in body.input]
    service.prompts.check_media(parts, "input")
    places = [f"input[{number}].{part.type}" for number, part in enumerate(parts)]
    loads = (service.prompts.load(part, place) for part, place in zip(parts, places, strict=True))
    return list(await asyncio.gather(*loads))


def answer(found: Embedded, body: EmbeddingsRequest, service: Service) -> dict[str, Any]:
    written = to_base64 if body.encoding_format == "base64" else list
    media = {"media": len(found.vectors), "cached_media": found.num_cached}
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": written(vector)}
            for index, vector in enumerate(found.vectors)
        ],
        "model": service.model_name,
        "usage": {"prompt_tokens": 0, "total_tokens": 0, **media},
    }


def to_base64(vector: list[float]) -> str:
    return base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()

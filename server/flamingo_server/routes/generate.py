"""`POST /v1/generate`: the whole road of a request, from body to tokens."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ..engine.engine import RequestHandle, Submission
from ..engine.request import Ended, Event, Finished, Sampling, Started, Text
from ..engine.request import TokenLogprob as EngineLogprob
from ..errors import OutOfRange, TooLarge
from ..protocol import Choice, ErrorResponse, GenerateRequest, GenerateResponse, TopToken
from ..protocol import TokenLogprob as WireLogprob
from ..service import Service
from ..sse import EventQueue, EventStream, encode, stream, to_error

DEFAULT_MAX_TOKENS = 64
STATUSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse}
    for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "model": GenerateResponse,
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "the whole answer, or with `stream` the events start, token, done, end",
    }
}

router = APIRouter(tags=["generate"])


@router.post("/v1/generate", responses={**STATUSES, **STREAM})
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Continue a prompt of pictures and text; with `stream`, token by token."""
    service: Service = request.app.state.service
    service.check_ready()
    check_request(body, service)
    id, events = f"gen-{uuid.uuid4().hex}", EventQueue()
    handle = await submit(id, body, service, events)

    def to_bytes(event: Event) -> bytes:
        return encode(event, id, service.model_name, lambda found: logprobs(found, service))

    if not body.stream:
        return await whole(id, events, handle, request, service)
    first = await next_event(events, handle, request)
    if first is None:
        return CLIENT_LEFT
    if isinstance(first, Exception):  # nothing has gone out yet: a plain error can still be sent
        raise to_error(first)
    return EventStream(stream(first, events, to_bytes), handle.cancel)


CLIENT_LEFT = Response(status_code=499)


async def submit(
    id: str, body: GenerateRequest, service: Service, events: EventQueue
) -> RequestHandle:
    """A place in the queue first, then the pictures, then the engine."""
    started = time.monotonic()
    with service.engine.place():
        prompt = await service.prompts.build(body)
        submission = Submission(
            id,
            prompt,
            service.metrics.watch(events.deliver),
            priority=body.priority,
            deadline=started + body.deadline_ms / 1000 if body.deadline_ms else None,
            media_ms=(time.monotonic() - started) * 1000,
        )
        sampling = to_sampling(body, len(prompt.token_ids), service)
        return service.engine.generate(submission, sampling)


async def next_event(events: EventQueue, handle: RequestHandle, request: Request) -> Event | None:
    """Waits for the next event; None, and the request cancelled, once the client has gone."""
    try:
        event = None
        while event is None:
            event = await events.next(timeout=0.25)
            if await request.is_disconnected():
                handle.cancel()
                return None
        return event
    except BaseException:
        handle.cancel()
        raise


async def whole(
    id: str, events: EventQueue, handle: RequestHandle, request: Request, service: Service
) -> Response:
    """Gathers all events into one answer."""
    texts: dict[int, list[Text]] = {}
    finished: dict[int, Finished] = {}
    while True:
        event = await next_event(events, handle, request)
        match event:
            case None:
                return CLIENT_LEFT
            case Exception():
                raise to_error(event)
            case Started():
                pass
            case Text():
                texts.setdefault(event.index, []).append(event)
            case Finished():
                finished[event.index] = event
            case Ended(usage, timings):
                choices = [choice(finished[i], texts.get(i, []), service) for i in sorted(finished)]
                return JSONResponse(
                    {
                        "id": id,
                        "model": service.model_name,
                        "choices": [c.model_dump() for c in choices],
                        "usage": asdict(usage),
                        "timings": asdict(timings),
                    }
                )


def choice(finished: Finished, texts: list[Text], service: Service) -> Choice:
    found = [entry for text in texts for entry in text.logprobs or []]
    wanted = any(text.logprobs is not None for text in texts)
    return Choice(
        index=finished.index,
        text="".join(text.text for text in texts),
        token_ids=[id for text in texts for id in text.token_ids],
        finish_reason=finished.finish_reason,
        logprobs=[WireLogprob(**entry) for entry in logprobs(found, service) or []]
        if wanted
        else None,
        score=finished.score,
    )


def logprobs(found: list[EngineLogprob] | None, service: Service) -> list[dict[str, Any]] | None:
    """Token ids with their spelling."""
    if found is None:
        return None

    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        token = service.spelling(token_id)
        return TopToken(token_id=token_id, token=token, logprob=logprob).model_dump()

    return [
        {**shown(entry.token_id, entry.logprob), "top": [shown(*pair) for pair in entry.top]}
        for entry in found
    ]


def check_request(body: GenerateRequest, service: Service) -> None:
    """What the wire shape alone cannot tell."""
    service.check_model(body.model)
    if body.n > (most := min(service.settings.max_n, service.settings.max_running)):
        raise OutOfRange(f"n may be at most {most}", param="n", code="too_many_choices")
    if body.max_tokens is not None and body.min_tokens > body.max_tokens:
        raise OutOfRange("min_tokens may not exceed max_tokens", param="min_tokens")


def to_sampling(body: GenerateRequest, num_prompt_tokens: int, service: Service) -> Sampling:
    room = service.settings.max_tokens - num_prompt_tokens
    if body.max_tokens is not None and body.max_tokens > room:
        raise TooLarge(
            f"max_tokens is {body.max_tokens:,}, but after a prompt of {num_prompt_tokens:,} "
            f"tokens only {room:,} of {service.settings.max_tokens:,} are left",
            param="max_tokens",
            code="max_tokens_too_large",
        )
    return Sampling(
        max_tokens=body.max_tokens or min(DEFAULT_MAX_TOKENS, room),
        min_tokens=body.min_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        no_repeat_ngram_size=body.no_repeat_ngram_size,
        seed=body.seed,
        stop=tuple(body.stop),
        n=body.n,
        logprobs=body.logprobs,
    )

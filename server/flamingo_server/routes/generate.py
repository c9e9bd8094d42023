"""`POST /v1/generate`: the whole road of a request, from body to tokens."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from ..engine.engine import RequestHandle, Submission
from ..engine.request import (
    Draft,
    Embedded,
    Ended,
    Event,
    Finished,
    LoadedAdapter,
    Sampling,
    Scored,
    Started,
    Text,
)
from ..engine.request import TokenLogprob as EngineLogprob
from ..errors import OutOfRange, TooLarge
from ..protocol.generate import Choice, GenerateRequest, GenerateResponse
from ..protocol.generate import TokenLogprob as WireLogprob
from ..protocol.operation import ErrorResponse
from ..service import Service
from ..sse import EventQueue, EventStream, encode, stream, to_error

if TYPE_CHECKING:
    from ..engine.constraints import Grammar

DEFAULT_MAX_TOKENS = 64
STATUSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse}
    for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "model": GenerateResponse,
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "the whole answer, or with `stream` the events start, token, "
        "hypothesis, done, end",
    }
}

router = APIRouter(tags=["generate"])


@router.post("/v1/generate", responses={**STATUSES, **STREAM})
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Continue a prompt of pictures and text; with `stream`, token by token."""
    service: Service = request.app.state.service
    service.check_ready()
    check_request(body, service)
    adapter = service.adapter(body.adapter)
    id, events = f"gen-{uuid.uuid4().hex}", EventQueue()
    handle = await submit(id, body, adapter, service, events)

    def to_bytes(event: Event) -> bytes:
        return encode(event, id, service.model_name, lambda found: logprobs(found, service))

    if not body.stream:
        return await whole(id, events, handle, request, service)
    first = await next_event(events, handle.cancel, request)
    if first is None:
        return CLIENT_LEFT
    if isinstance(first, Exception):  # nothing has gone out yet: a plain error can still be sent
        raise to_error(first)
    return EventStream(stream(first, events, to_bytes), handle.cancel)


CLIENT_LEFT = Response(status_code=499)


async def submit(
    id: str,
    body: GenerateRequest,
    adapter: LoadedAdapter | None,
    service: Service,
    events: EventQueue,
) -> RequestHandle:
    """A place in the queue first, then words and rules, then the pictures, then the engine."""
    started = time.monotonic()
    with service.engine.place():
        layout = service.prompts.lay_out(body)
        rendered = await service.prompts.render(layout)
        num_tokens = len(rendered.token_ids)
        sampling = to_sampling(body, num_tokens, await service.compile(body.constraint), service)
        service.engine.limits.check(num_tokens, len(layout.media), sampling)
        prompt = await service.prompts.build(layout, rendered, body.cache_salt)
        submission = Submission(
            id,
            prompt,
            service.metrics.watch(events.deliver),
            priority=body.priority,
            deadline=started + body.deadline_ms / 1000 if body.deadline_ms else None,
            media_ms=(time.monotonic() - started) * 1000,
            adapter=adapter,
        )
        return service.engine.generate(submission, sampling)


async def next_event(
    events: EventQueue, cancel: Callable[[], None], request: Request
) -> Event | None:
    """Waits for the next event; None, and the request cancelled, once the client has gone."""
    try:
        event = None
        while event is None:
            if await request.is_disconnected():  # asked before the wait, which it does not lengthen
                cancel()
                return None
            event = await events.next(timeout=0.25)
        return event
    except BaseException:
        cancel()
        raise


async def whole(
    id: str, events: EventQueue, handle: RequestHandle, request: Request, service: Service
) -> Response:
    """Gathers all events into one answer."""
    texts: dict[int, list[Text]] = {}
    finished: dict[int, Finished] = {}
    prompt_logprobs: Sequence[EngineLogprob | None] | None = None
    while True:
        event = await next_event(events, handle.cancel, request)
        match event:
            case None:
                return CLIENT_LEFT
            case Exception():
                raise to_error(event)
            case Started():
                prompt_logprobs = event.prompt_logprobs
            case Draft() | Scored() | Embedded():
                pass
            case Text():
                texts.setdefault(event.index, []).append(event)
            case Finished():
                finished[event.index] = event
            case Ended():
                ended = event
                break

    def answer() -> dict[str, Any]:
        choices = [choice(finished[i], texts.get(i, []), service) for i in sorted(finished)]
        asked = prompt_logprobs is not None
        return {
            "id": id,
            "model": service.model_name,
            "choices": [c.model_dump() for c in choices],
            **({"prompt_logprobs": logprobs(prompt_logprobs, service)} if asked else {}),
            "usage": asdict(ended.usage),
            "timings": asdict(ended.timings),
        }

    return await json_response(answer)


async def json_response(answer: Callable[[], dict[str, Any]]) -> Response:
    """In a thread: an answer may have a hundred thousand numbers."""
    content = await asyncio.to_thread(lambda: to_json(answer()))
    return Response(content, media_type="application/json")


def to_json(answer: dict[str, Any]) -> str:
    """Lists item by item: the interpreter turns to no other thread while it writes one."""
    fields = []
    for name, value in answer.items():
        if isinstance(value, list):
            written = f"[{','.join(map(dumps, value))}]"
        else:
            written = dumps(value)
        fields.append(f"{dumps(name)}:{written}")
    return f"{{{','.join(fields)}}}"


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def choice(finished: Finished, texts: list[Text], service: Service) -> Choice:
    found = [entry for text in texts for entry in text.logprobs or []]
    wanted = any(text.logprobs is not None for text in texts)
    return Choice(
        index=finished.index,
        text="".join(text.text for text in texts),
        token_ids=[id for text in texts for id in text.token_ids],
        finish_reason=finished.finish_reason,
        logprobs=[WireLogprob(**spelled(entry, service)) for entry in found] if wanted else None,
        score=finished.score,
    )


def logprobs(
    found: Sequence[EngineLogprob | None] | None, service: Service
) -> list[dict[str, Any] | None] | None:
    if found is None:
        return None
    return [None if entry is None else spelled(entry, service) for entry in found]


def spelled(entry: EngineLogprob, service: Service) -> dict[str, Any]:
    """Token ids with their spelling."""

    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        return {"token_id": token_id, "token": service.spelling(token_id), "logprob": logprob}

    return {**shown(entry.token_id, entry.logprob), "top": [shown(*pair) for pair in entry.top]}


def check_request(body: GenerateRequest, service: Service) -> None:
    """What the wire shape alone cannot tell."""
    service.check_model(body.model)
    settings = service.settings
    if body.n > (most := min(settings.max_n, settings.max_running)):
        raise OutOfRange(f"n may be at most {most}", param="n", code="too_many_choices")
    if body.num_beams > (most := min(settings.max_beams, settings.max_running)):
        message = f"num_beams may be at most {most}"
        raise OutOfRange(message, param="num_beams", code="too_many_beams")
    if body.max_tokens is not None and body.min_tokens > body.max_tokens:
        raise OutOfRange("min_tokens may not exceed max_tokens", param="min_tokens")
    check_work(body, settings.max_work)


def check_work(body: GenerateRequest, limit: int) -> None:
    max_tokens = body.max_tokens or DEFAULT_MAX_TOKENS
    work = body.num_beams * body.n * max_tokens
    if work > limit:
        raise TooLarge(
            f"num_beams {body.num_beams} x n {body.n} x max_tokens {max_tokens:,} is {work:,}; "
            f"the limit is {limit:,}: lower one of them",
            param="max_tokens",
            code="too_much_work",
        )


def to_sampling(
    body: GenerateRequest, num_prompt_tokens: int, grammar: Grammar | None, service: Service
) -> Sampling:
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
        prompt_logprobs=body.prompt_logprobs,
        grammar=grammar,
        num_beams=body.num_beams,
        length_penalty=body.length_penalty,
        early_stopping=body.early_stopping,
        score_rule=body.score_rule,
        stream_hypotheses=body.stream and body.stream_hypotheses,
    )

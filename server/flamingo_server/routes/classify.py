"""`POST /v1/classify` and `/v1/score`: how likely each of many texts is to go on from a prompt."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastapi import APIRouter, Request, Response

from flamingo_model.prompt import RenderedPrompt

from ..candidates import (
    CandidateLimits,
    Likelihood,
    Scores,
    averaged,
    blanked,
    orders,
    softmax,
    tokenise,
    writes_blank,
)
from ..engine.engine import RequestHandle, Submission
from ..engine.request import Ended, Prompt, Scored, Timings, Usage
from ..errors import BadRequest, OutOfRange, TooLarge
from ..prompts import Layout, to_prompt
from ..protocol.classify import ClassifyRequest, ClassifyResponse, ScoreRequest, ScoreResponse
from ..protocol.prompt import RunRequest
from ..service import Service
from ..sse import EventQueue, to_error
from .generate import CLIENT_LEFT, STATUSES, json_response, next_event

router = APIRouter(tags=["closed-ended answers"])
Order = tuple[int, ...]


@router.post("/v1/classify", responses={**STATUSES, 200: {"model": ClassifyResponse}})
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """Rank candidates by their likelihood behind a prompt."""
    service: Service = request.app.state.service
    examples = orders(len(body.examples), body.ensemble, body.seed)
    question = Question(f"cls-{uuid.uuid4().hex}", body, "candidates", body.candidates, examples)
    found = await ask(question, request, service, is_calibrated=body.calibrate)
    if found is None:
        return CLIENT_LEFT
    return await json_response(lambda: ranking(body, found))


@router.post("/v1/score", responses={**STATUSES, 200: {"model": ScoreResponse}})
async def score(body: ScoreRequest, request: Request) -> Response:
    """The log-probability of every token of continuations of a prompt."""
    service: Service = request.app.state.service
    texts, as_given = body.continuations, [tuple(range(len(body.examples)))]
    question = Question(f"scr-{uuid.uuid4().hex}", body, "continuations", texts, as_given)
    found = await ask(question, request, service)
    if found is None:
        return CLIENT_LEFT
    return await json_response(lambda: tokens(body, found, service))


@dataclass(frozen=True)
class Question:
    """Texts, from a field of the body, behind its prompt with the examples in each order."""

    id: str
    body: RunRequest
    field: str
    texts: list[str]
    orders: list[Order]


@dataclass(frozen=True)
class Found:
    """`scores` of one prompt for each order; `blank` of the same without the last picture."""

    head: dict[str, Any]
    token_ids: list[list[int]]
    scores: list[Scores]
    blank: list[Scores]
    ended: list[Ended]

    def tail(self) -> dict[str, Any]:
        """What all prompts cost together, and the longest that each phase took."""
        timings = [e.timings for e in self.ended]
        return {
            "usage": {
                f.name: sum(getattr(e.usage, f.name) for e in self.ended) for f in fields(Usage)
            },
            "timings": {f.name: max(getattr(t, f.name) for t in timings) for f in fields(Timings)},
        }


async def ask(
    question: Question, request: Request, service: Service, is_calibrated: bool = False
) -> Found | None:
    """Every prompt is a request of its own to the engine. None: the client has gone."""
    started, num = time.monotonic(), len(question.orders) * (2 if is_calibrated else 1)
    check_question(question, num, service)
    adapter = service.adapter(question.body.adapter)
    queues = [EventQueue() for _ in range(num)]
    handles = list[RequestHandle]()

    def cancel() -> None:
        for handle in handles:
            handle.cancel()

    try:
        with service.engine.place(num):
            prompts, token_ids = await prepare(question, service, is_calibrated)
            media_ms = (time.monotonic() - started) * 1000
            body = question.body
            for number, (prompt, queue) in enumerate(zip(prompts, queues, strict=True)):
                submission = Submission(
                    f"{question.id}-{number}",
                    prompt,
                    service.metrics.watch(queue.deliver),
                    priority=body.priority,
                    deadline=started + body.deadline_ms / 1000 if body.deadline_ms else None,
                    media_ms=media_ms,
                    adapter=adapter,
                )
                # in a thread, which orders the candidates in a trie
                handles.append(await asyncio.to_thread(service.engine.score, submission, token_ids))
        scores, ended = list[Scores](), list[Ended]()
        for queue in queues:
            answer = await collect(queue, cancel, request)
            if answer is None:
                return None
            scores.append(answer[0])
            ended.append(answer[1])
    finally:
        cancel()
    head = {"id": question.id, "model": service.model_name}
    num = len(question.orders)
    return Found(head, token_ids, scores[:num], scores[num:], ended)


async def collect(
    queue: EventQueue, cancel: Callable[[], None], request: Request
) -> tuple[Scores, Ended] | None:
    scores: Scores = []
    while True:
        event = await next_event(queue, cancel, request)
        if event is None:
            return None
        if isinstance(event, Exception):
            raise to_error(event)
        if isinstance(event, Scored):
            scores = event.logprobs
        if isinstance(event, Ended):
            return scores, event


def check_question(question: Question, num: int, service: Service) -> None:
    """What the wire shape alone cannot tell, before any work."""
    service.check_ready()
    service.check_model(question.body.model)
    if len(question.texts) > (most := service.settings.max_candidates):
        raise TooLarge(
            f"{len(question.texts):,} {question.field} are too many; the limit is {most:,}",
            param=question.field,
            code="too_many_candidates",
        )
    if num > (most := service.settings.max_queued):
        raise OutOfRange(
            f"the request asks {num} prompts, one for each order of the examples and blank "
            f"picture; the server holds {most}: set a smaller ensemble",
            param="ensemble",
            code="too_many_prompts",
        )


async def prepare(
    question: Question, service: Service, is_calibrated: bool
) -> tuple[list[Prompt], list[list[int]]]:
    """Words and limits first, then the pictures: once, for all orders."""
    body, builder = question.body, service.prompts

    def words() -> tuple[list[tuple[Layout, RenderedPrompt]], list[list[int]]]:
        rendered = list[tuple[Layout, RenderedPrompt]]()
        for order in question.orders:
            layout = builder.lay_out(reordered(body, order))
            rendered.append((layout, builder.render_now(layout)))
        return rendered, candidates(question, rendered, service, is_calibrated)

    rendered, token_ids = await asyncio.to_thread(words)
    layout, first = rendered[0]
    if is_calibrated and not layout.media:
        message = "calibrate needs a picture in the prompt, to compare with a blank one"
        raise BadRequest(message, param="calibrate", code="no_picture")
    longest = max(map(len, token_ids))
    for _, one in rendered:
        service.engine.limits.check_scores(len(one.token_ids), len(layout.media), longest)
    media = (await builder.build(layout, first, body.cache_salt)).media
    prompts = list[Prompt]()
    for order, (_, one) in zip(question.orders, rendered, strict=True):
        # each example has one picture, or none of them has
        moved = media if body.zero_shot else [*(media[i] for i in order), *media[len(order) :]]
        prompts.append(to_prompt(one, moved, body.cache_salt))
    if is_calibrated:
        prompts += [blanked(prompt, service.transform) for prompt in prompts]
    return prompts, token_ids


def reordered(body: RunRequest, order: Order) -> RunRequest:
    return body.model_copy(update={"examples": [body.examples[i] for i in order]})


def candidates(
    question: Question,
    rendered: Sequence[tuple[Layout, RenderedPrompt]],
    service: Service,
    is_calibrated: bool,
) -> list[list[int]]:
    """Their tokens, as the prompt's template writes an answer."""
    tokenizer, settings = service.prompts.renderer.literal, service.settings
    num_prompts = len(rendered) * (2 if is_calibrated else 1)
    longest_prompt = max(len(one.token_ids) for _, one in rendered)
    limits = CandidateLimits(
        max_length=settings.max_tokens - longest_prompt,
        max_tokens=settings.max_candidate_tokens // num_prompts,
    )
    blank = "" if writes_blank(tokenizer) else rendered[0][0].blank
    return tokenise(tokenizer, [blank + t for t in question.texts], question.field, limits)


def ranking(body: ClassifyRequest, found: Found) -> dict[str, Any]:
    """With `calibrate` a candidate's score is its log-likelihood less that with a blank picture:
    the logarithm of the quotient of the likelihoods."""
    likelihoods = averaged(found.scores)
    scores = [chosen(one, body) for one in likelihoods]
    if found.blank:
        without = [chosen(one, body) for one in averaged(found.blank)]
        scores = [a - b for a, b in zip(scores, without, strict=True)]
    probabilities = softmax(scores)
    best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
    return {
        **found.head,
        "candidates": [
            {
                "index": index,
                "text": body.candidates[index],
                **asdict(likelihoods[index]),
                "score": scores[index],
                "probability": probabilities[index],
            }
            for index in best_first
        ],
        **found.tail(),
    }


def chosen(likelihood: Likelihood, body: ClassifyRequest) -> float:
    return likelihood.mean if body.normalize == "mean" else likelihood.sum


def tokens(body: ScoreRequest, found: Found, service: Service) -> dict[str, Any]:
    [scores] = found.scores
    return {
        **found.head,
        "continuations": [
            {
                "index": index,
                "text": body.continuations[index],
                **asdict(Likelihood.of(logprobs)),
                "tokens": [
                    {"token_id": id, "token": service.spelling(id), "logprob": logprob}
                    for id, logprob in zip(token_ids, logprobs, strict=True)
                ],
            }
            for index, (token_ids, logprobs) in enumerate(zip(found.token_ids, scores, strict=True))
        ],
        **found.tail(),
    }

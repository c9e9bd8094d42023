"""Asks a server many questions at once. Whatever fails is asked again once, then reported."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flamingo_client import AsyncFlamingoClient, FlamingoError
from flamingo_eval.examples import Answer, Failure, Media, Question
from flamingo_eval.prompts import FAMILY, candidates, request, trimmed

T = TypeVar("T")
EMBEDDED_AT_ONCE = 16
REPEATABLE = (FlamingoError, OSError, ValueError)
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Style:
    """How questions are put, and answers decoded; None leaves it to the task."""

    wording: str = FAMILY
    num_beams: int | None = None
    max_tokens: int | None = None
    ensemble: int = 1
    normalize: str = "sum"


class Asker:
    """At most `concurrency` requests are under way."""

    def __init__(self, client: AsyncFlamingoClient, concurrency: int, style: Style) -> None:
        self.client, self.style = client, style
        self.places = asyncio.Semaphore(concurrency)
        self.known: dict[str, Vectors] = {}  # features by media key

    async def ask_all(
        self,
        questions: Sequence[Question],
        max_tokens: int,
        num_beams: int,
        advance: Callable[[], None] = lambda: None,
    ) -> list[Answer | Failure]:
        """An answer or a failure for each, in order."""
        beams, most = self.style.num_beams or num_beams, self.style.max_tokens or max_tokens

        async def ask(question: Question) -> Answer | Failure:
            if question.candidates:
                found = await self.twice(lambda: self.choose(question))
            else:
                found = await self.twice(lambda: self.write(question, most, beams))
            advance()
            return found

        return list(await asyncio.gather(*map(ask, questions)))

    async def twice(self, attempt: Callable[[], Awaitable[T]]) -> T | Failure:
        async with self.places:
            try:
                return await attempt()
            except REPEATABLE:
                try:
                    return await attempt()
                except REPEATABLE as error:
                    return Failure(str(error))

    async def write(self, question: Question, max_tokens: int, num_beams: int) -> Answer:
        """Greedy, or by beams as OpenFlamingo's evaluation: their scores not divided by length."""
        options: dict[str, Any] = {"max_tokens": max_tokens}
        if num_beams > 1:
            options |= {"num_beams": num_beams, "length_penalty": 0.0}
        asked = await asyncio.to_thread(request, question, self.style.wording)
        found = await self.client.generate(**asked, **options)
        return Answer(trimmed(found.text, question.form.task))

    async def choose(self, question: Question) -> Answer:
        """The likeliest candidate, over orders of the shots if there is an ensemble."""
        style = self.style
        texts = candidates(question, style.wording)
        options: dict[str, Any] = {"normalize": style.normalize}
        orders = min(style.ensemble, math.factorial(min(len(question.shots), 8)))
        if orders > 1:
            options |= {"ensemble": orders}
        asked = await asyncio.to_thread(request, question, style.wording)
        found = await self.client.classify(candidates=texts, **asked, **options)
        scores = {question.candidates[one.index]: one.score for one in found.candidates}
        return Answer(question.candidates[found.candidates[0].index], scores)

    async def embed(
        self, media: Sequence[Media], advance: Callable[[int], None] = lambda num: None
    ) -> Vectors:
        """The features [len(media), dim] of the frozen tower; each picture is sent once.

        Raises FlamingoError, OSError or ValueError where one cannot be had.
        """
        new = list({one.key: one for one in media if one.key not in self.known}.values())
        groups = [new[i : i + EMBEDDED_AT_ONCE] for i in range(0, len(new), EMBEDDED_AT_ONCE)]

        async def embed(group: list[Media]) -> None:
            found = await self.twice(lambda: self.embed_group(group))
            if isinstance(found, Failure):
                raise ValueError(f"no embeddings of {group[0].key} and others: {found.reason}")
            for one, vector in zip(group, found, strict=True):
                self.known[one.key] = vector
            advance(len(group))

        await asyncio.gather(*map(embed, groups))
        return np.array([self.known[one.key] for one in media], dtype=np.float32)

    async def embed_group(self, group: list[Media]) -> Vectors:
        sent = await asyncio.to_thread(lambda: [one.part() for one in group])
        found = await self.client.embeddings(sent)
        return np.array(found.vectors, dtype=np.float32)

"""Which examples become the shots of a query: by chance, or the most similar ones (RICES)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from flamingo_eval.asking import Asker, Vectors
from flamingo_eval.examples import Example

SELECTIONS = ("random", "rices")


async def shots_of(
    queries: Sequence[Example],
    pool: Sequence[Example],
    num: int,
    select: str,
    dice: random.Random,
    asker: Asker,
) -> list[tuple[Example, ...]]:
    """Of each query `num` examples of the pool, never its own picture.

    RICES (Yang et al. 2021): those whose pooled features are most similar, the most similar last,
    next to the query. Raises ValueError for an unknown selection or too small a pool.
    """
    if select not in SELECTIONS:
        raise ValueError(f"select {select!r} is not known; known: {', '.join(SELECTIONS)}")
    if num == 0:
        return [() for _ in queries]
    if num >= len(pool):
        raise ValueError(f"{num} shots from {len(pool)} examples: the pool is too small")
    if select == "random":
        return [drawn(query, pool, num, dice) for query in queries]
    known = await asker.embed([one.media for one in pool])
    asked = await asker.embed([one.media for one in queries])
    return [
        nearest(query, vector, pool, known, num)
        for query, vector in zip(queries, asked, strict=True)
    ]


def drawn(
    query: Example, pool: Sequence[Example], num: int, dice: random.Random
) -> tuple[Example, ...]:
    """One more is drawn, in case the query is among them."""
    some = [one for one in dice.sample(pool, num + 1) if one.media.key != query.media.key]
    return tuple(some[:num])


def nearest(
    query: Example, vector: Vectors, pool: Sequence[Example], known: Vectors, num: int
) -> tuple[Example, ...]:
    """Ties are broken by the order of the pool."""
    similarity = known @ vector
    order = np.argsort(-similarity, kind="stable")
    others = [pool[i] for i in order if pool[i].media.key != query.media.key]
    return tuple(reversed(others[:num]))

"""What answers as well without a language model: the label of the shot whose picture is nearest."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from PIL import Image

from flamingo_eval.asking import Asker, Vectors
from flamingo_eval.examples import Asked, Media, Question

SIZE = 64


def chance(questions: Sequence[Question]) -> float:
    """Of drawing one of the words that the shots have."""
    return fmean(1 / len({shot.answer for shot in question.shots}) for question in questions)


def by_pixels(asked: Sequence[Asked]) -> list[float]:
    """Right or wrong, by the distance of raw pixels, 64 × 64 in RGB."""
    known = {one.key: pixels(one) for one in media_of(asked)}
    return [nearest_is_right(one.question, known.__getitem__) for one in asked]


async def by_features(asked: Sequence[Asked], asker: Asker) -> list[float]:
    """The same by the frozen tower's pooled features, which are of length 1."""
    media = media_of(asked)
    vectors = await asker.embed(media)
    known = {one.key: vector for one, vector in zip(media, vectors, strict=True)}
    return [nearest_is_right(one.question, known.__getitem__) for one in asked]


def media_of(asked: Sequence[Asked]) -> list[Media]:
    """Each once."""
    found: dict[str, Media] = {}
    for one in asked:
        for example in (*one.question.shots, one.question.query):
            found[example.media.key] = example.media
    return list(found.values())


def nearest_is_right(question: Question, vector: Callable[[str], Vectors]) -> float:
    """Where several shots are as near, the share of those that are right."""
    query = vector(question.query.media.key)
    far = [float(np.sum((vector(s.media.key) - query) ** 2)) for s in question.shots]
    nearest = [s for s, at in zip(question.shots, far, strict=True) if np.isclose(at, min(far))]
    return fmean(shot.answer == question.query.answer for shot in nearest)


def pixels(media: Media) -> Vectors:
    with Image.open(io.BytesIO(media.read())) as picture:
        small = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    levels: Vectors = np.asarray(small, dtype=np.float32).ravel()
    return levels

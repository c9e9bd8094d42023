"""Prompts of k shots, made from a seed: a 224-pixel picture and about 20 tokens each."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from bench.vocabulary import words

SIZE = 224
SHOT_WORDS, QUERY_WORDS = 18, 12  # with <image> and <|endofchunk|> a shot has 20 tokens


@dataclass(frozen=True)
class Shot:
    """The bytes of a picture, and words with a space before each."""

    picture: bytes
    text: str


@dataclass(frozen=True)
class Prompt:
    """Examples, and the query that is to be continued."""

    shots: tuple[Shot, ...]
    query: Shot

    @property
    def pictures(self) -> list[bytes]:
        return [shot.picture for shot in (*self.shots, self.query)]

    @property
    def text(self) -> str:
        """As the reference writes it."""
        examples = "".join(f"<image>{shot.text}<|endofchunk|>" for shot in self.shots)
        return f"{examples}<image>{self.query.text}"

    def asking(self, seed: int) -> Prompt:
        """Another question about the same pictures."""
        return replace(self, query=replace(self.query, text=sentence(seed, QUERY_WORDS)))

    def showing(self, seed: int) -> Prompt:
        """The same examples, another picture and question."""
        return replace(self, query=Shot(picture(seed), sentence(seed, QUERY_WORDS)))


def prompt(seed: int, num_shots: int) -> Prompt:
    """Pictures and words that no other seed has."""
    seeds = [1000 * seed + number for number in range(num_shots)]
    shots = tuple(Shot(picture(s), sentence(s, SHOT_WORDS)) for s in seeds)
    last = 1000 * seed + 999
    return Prompt(shots, Shot(picture(last), sentence(last, QUERY_WORDS)))


def sentence(seed: int, num_words: int) -> str:
    chosen = random.Random(seed).choices(known_words(), k=num_words)
    return "".join(f" {word}" for word in chosen)


def candidates(seed: int, num: int) -> list[str]:
    """Different names of one to three tokens, which often begin alike as real ones do."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < num:
        chosen = rng.choices(known_words()[:300], k=rng.choice((1, 2, 2, 3)))
        found["".join(f" {word}" for word in chosen)] = None
    return list(found)


@cache
def known_words() -> list[str]:
    return words()


def picture(seed: int) -> bytes:
    """Soft patches of colour, as a JPEG: its size is that of a photo."""
    grid = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    smooth = Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    smooth.save(file, "JPEG", quality=90)
    return file.getvalue()

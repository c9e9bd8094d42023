"""Made-up words, examples, and their tokens.

A document is a run of examples `<image>` prompt answer `<|endofchunk|>`. Weights say which tokens
are learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ...config import SpecialTokens

if TYPE_CHECKING:
    from .tasks import Shown

SPECIAL = SpecialTokens()
WORDNET = Path("/usr/share/wordnet")  # Debian wordnet-base
RESERVED_WORDS = frozenset("dax wug blicket toma fep zorp".split())


@dataclass(frozen=True)
class Example:
    """One picture, a question, an answer; `weight` is the loss weight of the answer and of the
    end-of-chunk token after it."""

    prompt: str
    answer: str
    picture: Shown
    weight: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """A document as ids, with the weight of predicting each, and its pictures in order."""

    ids: list[int]
    weights: list[float]
    kind: str
    pictures: tuple[Shown, ...] = ()


def held_out_word(word: str) -> bool:
    """One made-up word in five is kept for evaluation."""
    return word in RESERVED_WORDS or int(hashlib.md5(word.encode()).hexdigest(), 16) % 5 == 0


def made_up_word(rng: np.random.Generator, held_out: bool = False) -> str:
    while True:
        syllables = [
            rng.choice(list("bdfgklmnprstvwz"))
            + rng.choice(list("aeiou"))
            + rng.choice(["", "", "n", "x", "g", "p", "sh", "ck", "l", "r"])
            for _ in range(rng.integers(1, 4))
        ]
        word = "".join(syllables)
        if len(word) > 2 and held_out_word(word) == held_out:
            return word


def made_up_words(num: int, rng: np.random.Generator, held_out: bool = False) -> list[str]:
    """Distinct words, none with the first three letters of another."""
    words: dict[str, str] = {}
    while len(words) < num:
        word = made_up_word(rng, held_out)
        words.setdefault(word[:3], word)
    return list(words.values())


def glosses(folder: Path = WORDNET) -> list[str]:
    """ "word: definition" of every WordNet noun, verb, adjective and adverb."""
    lines = []
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text().splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition("|")
            word = head.split()[4].replace("_", " ")
            lines.append(f"{word}: {gloss.split(';')[0].strip()}.")
    return lines


class Encoder:
    """Examples → tokens. Pieces are tokenised apart, as the server does with parts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocab = tokenizer.get_vocab()
        self.image: int = vocab[SPECIAL.image]
        self.end_of_chunk: int = vocab[SPECIAL.end_of_chunk]
        self.end_of_text: int = vocab[SPECIAL.end_of_text]
        self.vocab_size = len(vocab)

    def text(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def examples(self, examples: Iterable[Example], kind: str) -> Tokens:
        ids: list[int] = []
        weights: list[float] = []
        pictures: list[Shown] = []
        for example in examples:
            pictures.append(example.picture)
            answer = [*self.text(example.answer), self.end_of_chunk]
            prompt = self.text(example.prompt)
            ids += [self.image, *prompt, *answer]
            weights += [0.0] * (1 + len(prompt)) + [example.weight] * len(answer)
        return Tokens(ids, weights, kind, tuple(pictures))

    def plain(self, text: str, kind: str) -> Tokens:
        ids = [*self.text(text), self.end_of_text]
        return Tokens(ids, [0.0] + [1.0] * (len(ids) - 1), kind)


def train_tokenizer(corpus: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [SPECIAL.end_of_text, SPECIAL.end_of_chunk, SPECIAL.image]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def corpus(names: Iterable[str], tasks: Iterable[list[Example]], seed: int) -> Iterator[str]:
    """Glosses, examples, and every name often enough that its words are tokens."""
    yield from glosses()
    for name in names:
        yield from [f" {name}"] * 150
    for examples in tasks:
        yield from [example.prompt for example in examples]
        yield from [example.answer for example in examples]
    rng = np.random.default_rng(seed)
    for _ in range(5000):
        yield f" {made_up_word(rng)}."

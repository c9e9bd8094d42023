"""What the emoji world says: made-up words, templates, examples, and their tokens.

A document is a run of examples `<image>` prompt answer `<|endofchunk|>`; the text-only stage puts
words where the picture would be. Weights say which tokens are learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ...config import SpecialTokens
from .world import COLOUR_NAMES, COUNTS, Scene, Sprites

SPECIAL = SpecialTokens()
WORDNET = Path("/usr/share/wordnet")  # Debian wordnet-base
RESERVED_WORDS = frozenset("dax wug blicket toma fep zorp".split())
BINDING_TEMPLATES = (
    ("This is a", " {}."),
    ("Output:", "{}"),
    ("A", " {}."),
    ("Question: What is this? Answer:", " {}"),
    ("Name:", " {}"),
)
COLOUR_TEMPLATES = (
    ("Question: What color is the background? Answer:", " {}"),
    ("Question: What is the background color? Answer:", " {}"),
    ("Background:", " {}"),
)
COUNT_TEMPLATES = (
    ("Question: How many are there? Answer:", " {}"),
    ("Question: How many? Answer:", " {}"),
    ("Count:", " {}"),
)


@dataclass(frozen=True)
class Example:
    """One picture (its number in a pool, or words standing for it), a question, an answer.

    `weight` is the loss weight of the answer and of the end-of-chunk token after it.
    """

    prompt: str
    answer: str
    weight: float = 1.0
    picture: int | None = None
    stand_in: str = ""


@dataclass(frozen=True)
class Tokens:
    """A document as ids, with the weight of predicting each, and its pictures in order."""

    ids: list[int]
    weights: list[float]
    kind: int = 0
    pictures: tuple[int, ...] = ()


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


def colour_answer(scene: Scene) -> str:
    return COLOUR_NAMES[scene.background]


def count_answer(scene: Scene) -> str:
    return COUNTS[scene.count - 1]


def caption(scene: Scene, sprites: Sprites) -> str:
    """ "two foxs on a blue background."; what has no good name is a thing."""
    name = sprites.names[scene.sprite] if sprites.nameable(scene.sprite) else "thing"
    plural = "s" if scene.count > 1 else ""
    return f"{count_answer(scene)} {name}{plural} on a {colour_answer(scene)} background."


def in_context_weights(labels: Iterable[int]) -> list[float]:
    """1 for a label that an earlier example has shown, 0 for its first showing."""
    seen: set[int] = set()
    weights = []
    for label in labels:
        weights.append(1.0 if label in seen else 0.0)
        seen.add(label)
    return weights


def episode_labels(num_ways: int, num_examples: int, rng: np.random.Generator) -> list[int]:
    """Every class once, in any order, then classes at random: the order of a binding document."""
    rest = rng.integers(num_ways, size=num_examples - num_ways)
    return [*rng.permutation(num_ways).tolist(), *rest.tolist()]


class Encoder:
    """Examples → tokens. Pieces are tokenised apart, as the server does with parts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocab = tokenizer.get_vocab()
        self.image: int = vocab[SPECIAL.image]
        self.end_of_chunk: int = vocab[SPECIAL.end_of_chunk]
        self.end_of_text: int = vocab[SPECIAL.end_of_text]

    def text(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def examples(self, examples: Iterable[Example], kind: int, background: float) -> Tokens:
        """`background` is the weight of prompt tokens; stand-ins are never learned."""
        ids: list[int] = []
        weights: list[float] = []
        pictures: list[int] = []
        for example in examples:
            pictures += [] if example.picture is None else [example.picture]
            answer = [*self.text(example.answer), self.end_of_chunk]
            prompt = self.text(example.prompt)
            stand_in = self.text(example.stand_in)
            ids += [self.image, *stand_in, *prompt, *answer]
            weights += [0.0] * (1 + len(stand_in)) + [background] * len(prompt)
            weights += [example.weight] * len(answer)
        return Tokens(ids, weights, kind, tuple(pictures))

    def plain(self, text: str, kind: int) -> Tokens:
        ids = [*self.text(text), self.end_of_text]
        return Tokens(ids, [0.0] + [1.0] * (len(ids) - 1), kind)


def train_tokenizer(sprites: Sprites, vocab_size: int, seed: int) -> Tokenizer:
    """Byte-level BPE on the glosses, the templates and made-up words."""
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
    tokenizer.train_from_iterator(corpus(sprites, np.random.default_rng(seed)), trainer)
    return tokenizer


def corpus(sprites: Sprites, rng: np.random.Generator) -> Iterator[str]:
    yield from glosses()
    templates = (*BINDING_TEMPLATES, *COLOUR_TEMPLATES, *COUNT_TEMPLATES)
    for word in (*COLOUR_NAMES, *COUNTS):
        yield from [prompt + answer.format(word) for prompt, answer in templates] * 20
    for index, name in enumerate(sprites.names):
        if sprites.nameable(index):
            yield from [
                f"one {name} on a blue background.",
                f"two {name}s on a red background.",
            ] * 3
    for _ in range(5000):
        yield f"This is a {made_up_word(rng)}."

"""Stage 2, the language model: learns to learn in context from text alone, then is frozen.

Beside ordinary text it reads repeated sequences, associative recall, and binding documents in
Flamingo's own format in which a noisy list of words stands where the picture will be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import DenseSelfAttention
from ...config import DecoderConfig
from ...decoder import Decoder, DecoderLayer
from ...positions import reach
from ..log import StageLog, warmup_cosine
from .documents import (
    BINDING_TEMPLATES,
    COLOUR_TEMPLATES,
    COUNT_TEMPLATES,
    Encoder,
    Example,
    Tokens,
    episode_labels,
    in_context_weights,
    made_up_words,
)
from .world import COLOUR_NAMES, COUNTS

KINDS = ("repeat", "binding", "recall", "question", "plain")
SHARES = (0.12, 0.46, 0.10, 0.14, 0.18)
TABLES = ("embed.weight", "head.weight")
ROW_LENGTH = 160
ROWS_PER_STEP = 24


class TextWorld:
    """Draws text-only documents of each kind."""

    def __init__(self, encoder: Encoder, lines: list[str], rng: np.random.Generator) -> None:
        self.encoder, self.lines, self.rng = encoder, lines, rng
        words = {word for line in lines for word in line.split(":")[0].split() if word.isalpha()}
        self.words = sorted(word.lower() for word in words if 2 < len(word) < 9)
        self.draw: tuple[Callable[[int], Tokens], ...] = (
            self.repeat,
            self.binding,
            self.recall,
            self.question,
            self.plain,
        )

    def documents(self) -> Iterator[Tokens]:
        while True:
            kind = int(self.rng.choice(len(KINDS), p=SHARES))
            yield self.draw[kind](kind)

    def pick(self, num: int) -> list[str]:
        return [self.words[i] for i in self.rng.integers(len(self.words), size=num)]

    def repeat(self, kind: int) -> Tokens:
        vocab_size = self.encoder.tokenizer.get_vocab_size()
        once = self.rng.integers(3, vocab_size, self.rng.integers(6, 40)).tolist()
        times = int(self.rng.integers(2, 4))
        weights = [0.0] * (len(once) + 1) + [1.0] * (len(once) * (times - 1) - 1)
        return Tokens(once * times, weights, kind)

    def labels(self, num: int) -> list[str]:
        real = list(dict.fromkeys(self.pick(4 * num))) if self.rng.random() < 0.25 else []
        return real[:num] if len(real) >= num else made_up_words(num, self.rng)

    def binding(self, kind: int) -> Tokens:
        num_ways = int(self.rng.choice([2, 3, 4, 5], p=[0.5, 0.2, 0.15, 0.15]))
        order = episode_labels(num_ways, num_ways + int(self.rng.integers(1, 5)), self.rng)
        prompt, answer = BINDING_TEMPLATES[self.rng.integers(len(BINDING_TEMPLATES))]
        words = self.labels(num_ways)
        features = [self.pick(int(self.rng.integers(1, 4))) for _ in range(num_ways)]
        weights = in_context_weights(order)
        return self.encoder.examples(
            [
                Example(prompt, answer.format(words[c]), w, stand_in=self.blurred(features[c]))
                for c, w in zip(order, weights, strict=True)
            ],
            kind,
            background=0.02,
        )

    def blurred(self, features: list[str]) -> str:
        """The class's words in any order, some replaced, one or two of no meaning added."""
        kept = [w if self.rng.random() > 0.15 else self.pick(1)[0] for w in features]
        kept += self.pick(int(self.rng.integers(0, 3)))
        return " " + " ".join(kept[i] for i in self.rng.permutation(len(kept)))

    def recall(self, kind: int) -> Tokens:
        """Word pairs, then some of the words again: their partners must follow."""
        num = int(self.rng.integers(2, 7))
        keys, values = self.pick(num), self.labels(num)
        order = episode_labels(num, num + int(self.rng.integers(1, 4)), self.rng)
        weights = in_context_weights(order)
        ids: list[int] = []
        learned: list[float] = []
        for index, weight in zip(order, weights, strict=True):
            head = self.encoder.text(f" {keys[index]}:")
            tail = self.encoder.text(f" {values[index]}.")
            ids, learned = ids + head + tail, learned + [0.0] * len(head) + [weight] * len(tail)
        return Tokens(ids, learned, kind)

    def question(self, kind: int) -> Tokens:
        """Background and count, told by the stand-in or (one in four) left to guess."""
        examples = []
        for _ in range(self.rng.integers(1, 4)):
            colour = COLOUR_NAMES[self.rng.integers(len(COLOUR_NAMES))]
            count = COUNTS[self.rng.integers(len(COUNTS))]
            told = self.blurred([colour, count]) if self.rng.random() < 0.75 else ""
            asked, said = ((COLOUR_TEMPLATES, colour), (COUNT_TEMPLATES, count))[
                self.rng.integers(2)
            ]
            prompt, answer = asked[self.rng.integers(len(asked))]
            examples.append(Example(prompt, answer.format(said), stand_in=told))
        return self.encoder.examples(examples, kind, background=0.05)

    def plain(self, kind: int) -> Tokens:
        return self.encoder.plain(self.lines[self.rng.integers(len(self.lines))], kind)


def pack(documents: Iterator[Tokens], num_rows: int, length: int) -> dict[str, Tensor]:
    """Rows [num_rows, length] of whole documents side by side; segment 0 is padding."""
    names = ("ids", "weights", "segments", "positions", "kinds")
    rows = {name: np.zeros((num_rows, length), dtype=np.float32) for name in names}
    for row in range(num_rows):
        filled, segment = 0, 0
        while filled < length:
            document = next(documents)
            size = min(len(document.ids), length - filled)
            where = (row, slice(filled, filled + size))
            filled, segment = filled + size, segment + 1
            rows["ids"][where] = document.ids[:size]
            rows["weights"][where] = document.weights[:size]
            rows["segments"][where] = segment
            rows["positions"][where] = np.arange(size)
            rows["kinds"][where] = document.kind
    packed = {name: torch.from_numpy(rows[name]) for name in names}
    return {k: v if k == "weights" else v.long() for k, v in packed.items()}


def typed_layers(decoder: Decoder) -> list[DecoderLayer]:
    return [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]


def initialise(decoder: Decoder) -> None:
    """Random weights, then an induction circuit written into the first two layers by hand."""
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=1.0 if "embed" in name else parameter.shape[1] ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for layer in typed_layers(decoder):
        for out in (layer.out, layer.down):
            out.weight.data *= (2 * len(decoder.layers)) ** -0.5
    with torch.no_grad():
        seed_induction(decoder)


def seed_induction(decoder: Decoder, strength: float = 1.8) -> None:
    """Layer 0 copies the previous token, layer 1 looks for the token that followed a like one.

    A model this small needs several times the tokens before it finds this circuit by itself, and
    without it it does not learn in context at all. All of it stays trainable.
    """
    head_dim, dim = decoder.config.head_dim, decoder.config.dim
    first, second = typed_layers(decoder)[:2]
    was = nn.init.orthogonal_(torch.empty(2 * head_dim, dim))  # what is read of the last token
    now = nn.init.orthogonal_(torch.empty(2 * head_dim, dim))  # where that is written
    copied = nn.init.orthogonal_(torch.empty(4 * head_dim, dim))
    answer = nn.init.orthogonal_(torch.empty(4 * head_dim, dim))  # where the copy is written
    for head in range(2):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        look_one_back(decoder, rows)
        first.v.weight[rows] = was[rows]
        first.out.weight[:, rows] = now[rows].T * strength
    for head in range(4):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        half = slice((head % 2) * head_dim, (head % 2 + 1) * head_dim)
        # The same direction for all positions: rotary angles of near tokens differ little there.
        second.q.weight[rows], second.k.weight[rows] = slow(was[half]), slow(now[half])
        second.v.weight[rows] = copied[rows]
        second.out.weight[:, rows] = answer[rows].T * strength
    for projection in (second.q, second.k):
        projection.weight[: 4 * head_dim] *= strength
    decoder.head.weight.copy_(decoder.embed.weight @ copied.T @ answer * 0.05)


def slow(rows: Tensor) -> Tensor:
    """Keeps the half of the rotary pairs that turn slowly; the fast ones would blur a match."""
    pairs = len(rows) // 2
    kept = torch.arange(len(rows)) % pairs >= pairs // 2
    return rows * kept.unsqueeze(1) * 2**0.5


def look_one_back(decoder: Decoder, rows: slice, strength: float = 6.0) -> None:
    """With q and k made of their biases, rotary positions give Σ cos((s-t+1)θ): a peak at t-1."""
    head_dim = decoder.config.head_dim
    angle = decoder.config.rope_theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    first = typed_layers(decoder)[0]
    for projection, bias in (
        (first.q, torch.cat([angle.cos(), -angle.sin()])),
        (first.k, torch.cat([torch.ones_like(angle), torch.zeros_like(angle)])),
    ):
        projection.weight[rows] *= 0.1
        projection.bias[rows] = bias * strength


def weighted_loss(decoder: Decoder, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy of the weighted tokens, and loss and accuracy of each kind."""
    num_rows, length = batch["ids"].shape
    attend = DenseSelfAttention(num_rows, length, reach(decoder.config), batch["segments"])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder(batch["ids"], batch["positions"], attend)[:, :-1]
        same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        weights = batch["weights"][:, 1:] * same
        learned = weights > 0
        logits = decoder.logits(hidden[learned])
    targets, weight = batch["ids"][:, 1:][learned], weights[learned]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    right = (logits.argmax(-1) == targets).float()
    figures = {}
    for index, kind in enumerate(KINDS):
        chosen = (batch["kinds"][:, 1:][learned] == index) & (weight > 0.5)
        if chosen.any():
            figures[kind] = losses[chosen].mean().item()
            figures[f"{kind}_right"] = right[chosen].mean().item()
    return (losses * weight).sum() / weight.sum(), figures


def build_optimisers(decoder: Decoder, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in decoder.named_parameters() if p.ndim == 2 and n not in TABLES]
    others = [p for n, p in decoder.named_parameters() if p.ndim != 2 or n in TABLES]
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw", ns_steps=4
    )
    return [muon, torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def train_language(
    config: DecoderConfig,
    encoder: Encoder,
    lines: list[str],
    run: Path,
    seed: int,
    num_steps: int,
    rate: float = 3e-3,
) -> Decoder:
    """Trains for `num_steps` of 3,840 tokens; logs loss and accuracy of each kind."""
    torch.manual_seed(seed)
    decoder = Decoder(config)
    initialise(decoder)
    documents = TextWorld(encoder, lines, np.random.default_rng(seed)).documents()
    optimisers = build_optimisers(decoder, rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: warmup_cosine(step, num_steps, 60))
        for o in optimisers
    ]
    log = StageLog("language", num_steps, run / "log.jsonl")
    for _ in log.steps():
        loss, figures = weighted_loss(decoder, pack(documents, ROWS_PER_STEP, ROW_LENGTH))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for optimiser, schedule in zip(optimisers, schedules, strict=True):
            optimiser.step()
            schedule.step()
        log.add(loss=loss.item(), **figures)
    return decoder.eval()

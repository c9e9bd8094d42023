"""Stage 2, the language model: learns to learn in context from text alone, then is frozen.

Beside ordinary text it reads repeated sequences, associative recall, and all the tasks in
Flamingo's own format, with words and codes standing in for pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import DenseSelfAttention
from ...cross_attention import visible_media
from ...decoder import Decoder, DecoderLayer
from ...positions import reach
from ..optimise import Group, trained
from .documents import Encoder, Tokens
from .precision import activations
from .seeded import SeededStage
from .standins import (
    CODE_DIM,
    NUM_PLACES,
    Code,
    StandIns,
    TextGallery,
    at_tokens,
    blurred,
    stand_in_tensors,
)
from .tasks import Shown, Tasks, episode_labels, in_context_weights

SHARES = {
    "repeat": 0.04,
    "recall": 0.03,
    "plain": 0.03,
    "binding": 0.24,
    "hidden": 0.07,
    "name": 0.08,
    "caption": 0.13,
    "colour": 0.02,
    "count": 0.02,
    "what": 0.09,
    "where": 0.08,
    "yes_no": 0.15,
    "motion": 0.02,
}
KINDS = tuple(SHARES)
TABLES = ("embed.weight", "head.weight")
ROW_LENGTH = 224
ROWS_PER_STEP = 18


class TextWorld:
    """Draws text-only documents of each kind."""

    def __init__(
        self, encoder: Encoder, lines: list[str], gallery: TextGallery, rng: np.random.Generator
    ) -> None:
        self.encoder, self.lines, self.rng = encoder, lines, rng
        words = {word for line in lines for word in line.split(":")[0].split() if word.isalpha()}
        self.words = sorted(word.lower() for word in words if 2 < len(word) < 9)
        self.tasks = Tasks(gallery, rng)

    def documents(self) -> Iterator[Tokens]:
        own = {"repeat": self.repeat, "recall": self.recall, "plain": self.plain}
        while True:
            kind = KINDS[self.rng.choice(len(KINDS), p=[*SHARES.values()])]
            if kind in own:
                yield own[kind]()
            else:
                yield self.encoder.examples(self.tasks.kinds[kind](), kind)

    def pick(self, num: int) -> list[str]:
        return [self.words[i] for i in self.rng.integers(len(self.words), size=num)]

    def repeat(self) -> Tokens:
        vocab_size = self.encoder.tokenizer.get_vocab_size()
        once = self.rng.integers(3, vocab_size, self.rng.integers(6, 40)).tolist()
        times = int(self.rng.integers(2, 4))
        weights = [0.0] * (len(once) + 1) + [1.0] * (len(once) * (times - 1) - 1)
        return Tokens(once * times, weights, "repeat")

    def recall(self) -> Tokens:
        """Word pairs, then some of the words again: their partners must follow."""
        num = int(self.rng.integers(2, 7))
        keys, values = self.pick(num), self.tasks.labels(num)
        order = episode_labels(num, num + int(self.rng.integers(1, 4)), self.rng)
        ids: list[int] = []
        learned: list[float] = []
        for index, weight in zip(order, in_context_weights(order), strict=True):
            head = self.encoder.text(f" {keys[index]}:")
            tail = self.encoder.text(f" {values[index]}.")
            ids, learned = ids + head + tail, learned + [0.0] * len(head) + [weight] * len(tail)
        return Tokens(ids, learned, "recall")

    def plain(self) -> Tokens:
        return self.encoder.plain(self.lines[self.rng.integers(len(self.lines))], "plain")


def pack(
    documents: Iterator[Tokens], num_rows: int, length: int, image_token_id: int
) -> tuple[dict[str, Tensor], list[Shown]]:
    """Rows [num_rows, length] of documents side by side, and the pictures their tokens see.

    Segment 0 is padding, picture -1 none.
    """
    names = ("ids", "weights", "segments", "positions", "kinds", "pictures")
    rows = {name: np.zeros((num_rows, length), dtype=np.float32) for name in names}
    rows["pictures"] -= 1
    shown: list[Shown] = []
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
            rows["kinds"][where] = KINDS.index(document.kind)
            if document.pictures:
                seen = np.array(visible_media(document.ids[:size], image_token_id))
                rows["pictures"][where] = np.where(seen < 0, -1, seen + len(shown))
                shown += document.pictures
    packed = {name: torch.from_numpy(rows[name]) for name in names}
    return {k: v if k == "weights" else v.long() for k, v in packed.items()}, shown


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


@torch.no_grad()
def tell_codes(
    decoder: Decoder, stand_ins: StandIns, encoder: Encoder, codes: Mapping[str, Code]
) -> None:
    """Words begin near what they name: each embedding with the mean code of the things whose names
    it is in, each output row with that of the names it begins, where a picture's code will be
    said. Then heads that compare the two, in the third layer. All of it stays trainable."""
    said = {name: encoder.text(f" {name}") for name in codes}
    for table, size, length in ((decoder.embed.weight, 10.0, None), (decoder.head.weight, 0.5, 1)):
        sums = torch.zeros(len(table), CODE_DIM)
        for name, ids in said.items():
            for token in ids[:length]:
                sums[token] += torch.from_numpy(codes[name])
        table += size * F.normalize(sums, dim=1) @ stand_ins.place(0)
    seed_comparison(decoder, stand_ins)


def seed_comparison(decoder: Decoder, stand_ins: StandIns, strength: float = 1.8) -> None:
    """From what a picture shows first (two heads) or second (two more) to the words for it."""
    head_dim, layer = decoder.config.head_dim, typed_layers(decoder)[2]
    for head in range(2 * NUM_PLACES):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        shared = torch.arange(head_dim) + (head % 2) * head_dim
        asked, said = (stand_ins.place(place)[shared % CODE_DIM] for place in (head // 2, 0))
        layer.q.weight[rows], layer.k.weight[rows] = slow(asked) * strength, slow(said) * strength


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


def hidden_states(decoder: Decoder, batch: dict[str, Tensor], vectors: Tensor) -> Tensor:
    """[B, T, dim]; `vectors` [P, dim] are added to the tokens that see each picture."""
    num_rows, length = batch["ids"].shape
    attend = DenseSelfAttention(num_rows, length, reach(decoder.config), batch["segments"])
    told = at_tokens(vectors, batch["pictures"])
    hidden: Tensor = decoder(
        batch["ids"],
        batch["positions"],
        attend,
        lambda layer, hidden: hidden + told if layer == 0 else hidden,
    )
    return hidden


def weighted_loss(
    decoder: Decoder, batch: dict[str, Tensor], vectors: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy of the weighted tokens, and loss and accuracy of each kind."""
    with activations():
        hidden = hidden_states(decoder, batch, vectors)[:, :-1]
        same = batch["segments"][:, 1:] == batch["segments"][:, :-1]
        weights = batch["weights"][:, 1:] * same
        learned = weights > 0
        logits = decoder.logits(hidden[learned])
    targets, weight = batch["ids"][:, 1:][learned], weights[learned]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    right = (logits.argmax(-1) == targets).float()
    figures = {}
    for index, kind in enumerate(KINDS):
        chosen = batch["kinds"][:, 1:][learned] == index
        if chosen.any():
            figures[kind] = losses[chosen].mean().item()
            figures[f"{kind}_right"] = right[chosen].mean().item()
    return (losses * weight).sum() / weight.sum(), figures


class LanguageStage(SeededStage):
    """Steps of 4,032 tokens: Muon for the matrices, AdamW for embeddings, norms and biases."""

    def __init__(
        self,
        decoder: Decoder,
        stand_ins: StandIns,
        encoder: Encoder,
        lines: list[str],
        gallery: TextGallery,
        seed: int,
    ) -> None:
        super().__init__(seed, gallery.rng)
        self.module: Decoder = decoder
        self.stand_ins, self.encoder = stand_ins, encoder
        self.documents = TextWorld(encoder, lines, gallery, self.rng).documents()

    def groups(self) -> list[Group]:
        learned = trained(self.module)
        matrices = {k: p for k, p in learned.items() if p.ndim == 2 and k not in TABLES}
        others = {k: p for k, p in learned.items() if k not in matrices}
        return [Group(matrices, rule="muon"), Group(others, decays=False)]

    def losses(self, step: int) -> tuple[Tensor, dict[str, float]]:
        batch, shown = pack(self.documents, ROWS_PER_STEP, ROW_LENGTH, self.encoder.image)
        vectors = blurred(self.stand_ins(*stand_in_tensors(shown)))
        return weighted_loss(self.module, batch, vectors)

"""Stage 3: resampler and gated cross-attention, over the frozen tower and the frozen decoder.

First they learn to say where the stand-ins of stage 2 said it: the first block's write must be the
vector of what the picture shows. Then documents with pictures, through the whole decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import DenseCrossAttention, DenseSelfAttention
from ...cross_attention import media_mask, visible_media
from ...flamingo import Flamingo
from ...positions import reach
from ..optimise import Group, trained
from .alignment import alignment_losses, written
from .documents import Encoder, Example, Tokens
from .pictures import Pool, PoolGallery
from .precision import activations
from .seeded import SeededStage, by_shape
from .standins import StandIns
from .tasks import HIDDEN_TASKS, Tasks
from .world import Sprites

PER_STEP = {
    "binding": 14,
    "hidden": 8,
    "name": 8,
    "caption": 10,
    "colour": 6,
    "count": 3,
    "what": 12,
    "where": 6,
    "yes_no": 18,
    "motion": 5,
}
KINDS = tuple(PER_STEP)
KIND_WEIGHTS = {"binding": 2.0, "name": 1.5, "caption": 1.5, "yes_no": 2.5, "what": 1.5}
ROWS_AT_ONCE = 8
PICTURES_PER_STEP, FILMS_PER_STEP = 192, 48  # the films are among them
ALIGNMENT_WEIGHT = 0.2
KEPT_OF_START = 0.25  # between the two what was never seen is told better (arXiv:2109.01903)
TOKENS_PER_PICTURE = 4


@dataclass(frozen=True)
class PictureBatch:
    """Padded rows [B, T] with the pool numbers of their pictures [B, M]."""

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    media_index: Tensor
    pictures: Tensor

    @classmethod
    def collate(cls, documents: Sequence[Tokens], image_token_id: int) -> PictureBatch:
        length = max(len(d.ids) for d in documents)
        num_media = max(len(d.pictures) for d in documents)

        def padded(rows: Iterable[Sequence[float]], fill: float, size: int) -> Tensor:
            return torch.tensor([[*row] + [fill] * (size - len(row)) for row in rows])

        seen = (visible_media(d.ids, image_token_id) for d in documents)
        return cls(
            ids=padded((d.ids for d in documents), 0, length),
            weights=padded((d.weights for d in documents), 0.0, length),
            kinds=torch.tensor([KINDS.index(d.kind) for d in documents]),
            media_index=padded(seen, -1, length),
            pictures=padded(([p.number for p in d.pictures] for d in documents), 0, num_media),
        )


def initialise(model: Flamingo, gate: float = 0.5) -> None:
    """An exact identity at the start that learns at once: gates open, output projections zero."""
    for block in model.blocks():
        for parameter in (block.attention_gate, block.feed_forward_gate):
            if parameter is not None:
                nn.init.constant_(parameter, gate)
        nn.init.zeros_(block.to_out.weight)
        if block.feed_forward is not None:
            nn.init.zeros_(block.feed_forward.get_parameter("down.weight"))


def encode(model: Flamingo, pool: Pool, numbers: Sequence[int]) -> Tensor:
    """Latents [N, R, dim] of pictures and films of a pool."""
    batches = pool.batches(numbers)
    latents = torch.cat([model.resampler(features.float()) for _, features in batches])
    order = torch.tensor([place for places, _ in batches for place in places])
    return latents[order.argsort()]


def forward(model: Flamingo, batch: PictureBatch, latents: Tensor) -> Tensor:
    """`latents` [B, M, R, dim] of the batch's pictures → final hidden states [B, T, dim]."""
    sees_all = model.config.cross_attention.sees_all_media
    mask = media_mask(batch.media_index, latents.shape[1], sees_all)
    num_rows, length = batch.ids.shape
    positions = torch.arange(length).expand_as(batch.ids)
    hidden: Tensor = model(
        batch.ids,
        positions,
        DenseSelfAttention(num_rows, length, reach(model.config.decoder)),
        DenseCrossAttention(model.project_media(latents), mask),
    )
    return hidden


class Aligner:
    """What the first block writes for a pool's pictures, beside what the stand-ins would say."""

    def __init__(self, model: Flamingo, stand_ins: StandIns, codes: Tensor, pool: Pool) -> None:
        self.model, self.stand_ins, self.codes, self.pool = model, stand_ins, codes, pool

    def losses(self, latents: Tensor, numbers: Sequence[int], ids: Tensor) -> dict[str, Tensor]:
        """`ids` [P, n] are tokens that look at the pictures of these numbers."""
        vectors = written(self.model, latents, self.model.decoder.embed(ids))
        said = self.pool.said[torch.tensor(numbers)]
        return alignment_losses(self.stand_ins, self.codes, vectors, said)


class JoiningStage(SeededStage):
    """Trains resampler and cross-attention; all else is frozen."""

    def __init__(self, model: Flamingo, aligner: Aligner, encoder: Encoder, seed: int) -> None:
        super().__init__(seed)
        self.module: Flamingo = model.requires_grad_(False)
        model.resampler.requires_grad_(True)
        model.cross_attention.requires_grad_(True)
        self.aligner, self.pool, self.encoder = aligner, aligner.pool, encoder

    def groups(self) -> list[Group]:
        learned = trained(self.module)
        resampler = {k: p for k, p in learned.items() if k.startswith("resampler.")}
        rest = {k: p for k, p in learned.items() if k not in resampler}
        return [*by_shape(resampler, decays=False), *by_shape(rest)]


class AlignmentStage(JoiningStage):
    """Resampler and first block learn to say what the stand-ins said, of pictures and, the new
    thing after the contrastive stage, of films; each is seen by its own token and a few others."""

    def __init__(self, model: Flamingo, aligner: Aligner, encoder: Encoder, seed: int) -> None:
        super().__init__(model, aligner, encoder, seed)
        self.films = np.array(self.pool.numbers(lambda shown: shown.motion is not None))

    def losses(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = self.rng
        pictures = rng.integers(len(self.pool.shown), size=PICTURES_PER_STEP - FILMS_PER_STEP)
        numbers = [*pictures.tolist(), *rng.choice(self.films, FILMS_PER_STEP).tolist()]
        seen_by = rng.integers(3, self.encoder.vocab_size, (len(numbers), TOKENS_PER_PICTURE))
        ids = torch.from_numpy(seen_by)
        ids[:, 0] = self.encoder.image
        with activations():
            losses = self.aligner.losses(encode(self.module, self.pool, numbers), numbers, ids)
        return torch.stack([*losses.values()]).sum(), {k: v.item() for k, v in losses.items()}


class DocumentStage(JoiningStage):
    """Documents with pictures, through the whole decoder, and a little of the alignment still."""

    def __init__(
        self,
        model: Flamingo,
        aligner: Aligner,
        encoder: Encoder,
        tests: dict[str, Pool],
        sprites: Sprites,
        seed: int,
    ) -> None:
        super().__init__(model, aligner, encoder, seed)
        self.tests, self.sprites = tests, sprites
        self.tasks = Tasks(PoolGallery(self.pool, sprites, self.rng), self.rng)
        self.start = {k: p.detach().clone() for k, p in trained(model).items()}

    def losses(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The mean of the kinds' losses, and a little of the alignment of the pictures shown."""
        drawn = [
            self.encoder.examples(self.tasks.kinds[kind](), kind)
            for kind, num in PER_STEP.items()
            for _ in range(num)
        ]
        numbers = sorted({picture.number for tokens in drawn for picture in tokens.pictures})
        with activations():
            latents = encode(self.module, self.pool, numbers)
            ids = torch.full((len(numbers), 1), self.encoder.image)
            said = self.aligner.losses(latents, numbers, ids)
            aligned = torch.stack([*said.values()]).sum()
            parts = [
                token_losses(self.module, batch, latents[places(numbers, batch)])
                for batch in by_length(drawn, self.encoder.image)
            ]
        losses, right, kinds = (torch.cat(part) for part in zip(*parts, strict=True))
        total, figures = ALIGNMENT_WEIGHT * aligned, {"align": aligned.item()}
        for index, kind in enumerate(KINDS):
            own = kinds == index
            total = total + losses[own].mean() * KIND_WEIGHTS.get(kind, 1.0)
            figures |= {kind: losses[own].mean().item(), f"{kind}_right": right[own].mean().item()}
        return total, figures

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.module, self.encoder, self.tests, self.sprites)

    @torch.no_grad()
    def finish(self) -> None:
        """A part of what it began with is kept."""
        for name, parameter in trained(self.module).items():
            parameter.lerp_(self.start[name], KEPT_OF_START)


def by_length(drawn: Sequence[Tokens], image_token_id: int) -> list[PictureBatch]:
    """Batches of documents about equally long, so that little is padding."""
    ordered = sorted(drawn, key=lambda tokens: len(tokens.ids))
    return [
        PictureBatch.collate(ordered[start : start + ROWS_AT_ONCE], image_token_id)
        for start in range(0, len(ordered), ROWS_AT_ONCE)
    ]


def places(numbers: list[int], batch: PictureBatch) -> Tensor:
    """Where each of the batch's pictures stands among `numbers` (sorted)."""
    found = torch.searchsorted(torch.tensor(numbers), batch.pictures)
    return found.clamp(max=len(numbers) - 1)


def token_losses(
    model: Flamingo, batch: PictureBatch, latents: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the learned tokens: cross-entropy, 1 where right, and the number of their kind."""
    hidden = forward(model, batch, latents)
    learned = batch.weights[:, 1:] > 0
    logits = model.logits(hidden[:, :-1][learned])
    targets = batch.ids[:, 1:][learned]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    kinds = batch.kinds[learned.nonzero()[:, 0]]
    return losses, (logits.argmax(-1) == targets).float(), kinds


def last_only(examples: Sequence[Example]) -> list[Example]:
    silent = [Example(e.prompt, e.answer, e.picture, 0.0) for e in examples[:-1]]
    return [*silent, examples[-1]]


@torch.no_grad()
def evaluate(
    model: Flamingo, encoder: Encoder, tests: dict[str, Pool], sprites: Sprites, num: int = 128
) -> dict[str, float]:
    """Whole answers right under teacher forcing: `tests` has pools of "known" and "held_out"."""
    figures = {}
    for split, pool in tests.items():
        rng = np.random.default_rng(0)
        tasks = Tasks(PoolGallery(pool, sprites, rng), rng, held_out_words=True)
        for name, draw in questions(tasks, split == "known").items():
            drawn = [encoder.examples(last_only(draw()), KINDS[0]) for _ in range(num)]
            figures[f"{split}_{name}"] = share_right(model, encoder, pool, drawn)
    return figures


def questions(tasks: Tasks, are_known: bool) -> dict[str, Callable[[], list[Example]]]:
    drawn: dict[str, Callable[[], list[Example]]] = {
        "2_way": lambda: tasks.episode(2, 3),
        "5_way": lambda: tasks.episode(5, 6),
        "motion": lambda: [tasks.motion()],
    }
    if not are_known:
        return drawn
    return drawn | {
        "name": lambda: [tasks.name()],
        "colour": lambda: [tasks.colour()],
        "count": lambda: [tasks.count()],
        "what": lambda: [tasks.what()],
        "where": lambda: [tasks.where()],
        "yes_no": lambda: [tasks.yes_no()],
        "caption_pair": lambda: [tasks.caption(tasks.gallery.pair())],
        **{f"hidden_{task}": partial(tasks.hidden, 3, task) for task in HIDDEN_TASKS},
    }


def share_right(model: Flamingo, encoder: Encoder, pool: Pool, drawn: Sequence[Tokens]) -> float:
    """Of documents whose last answer alone is weighted: how many have all of its tokens right."""
    wrong = 0
    for start in range(0, len(drawn), 32):
        batch = PictureBatch.collate(drawn[start : start + 32], encoder.image)
        batch = replace(batch, kinds=torch.arange(len(batch.ids)))
        numbers = sorted(set(batch.pictures.flatten().tolist()))
        with activations():
            latents = encode(model, pool, numbers)
            _, right, rows = token_losses(model, batch, latents[places(numbers, batch)])
        wrong += len(rows[right == 0].unique())
    return round(1 - wrong / len(drawn), 4)

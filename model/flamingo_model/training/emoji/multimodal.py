"""Stage 3: resampler and gated cross-attention, over the frozen tower and the frozen decoder.

First they learn to say where the stand-ins of stage 2 said it: the first block's write must be the
vector of what the picture shows. Then documents with pictures, through the whole decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import DenseCrossAttention, DenseSelfAttention
from ...cross_attention import media_mask, visible_media
from ...flamingo import Flamingo
from ...positions import reach
from ..log import StageLog
from ..optimise import warmup_cosine
from .alignment import alignment_losses, written
from .documents import Encoder, Example, Tokens
from .pictures import Pool, PoolGallery
from .precision import activations
from .standins import StandIns
from .tasks import HIDDEN_TASKS, Tasks
from .world import Sprites

PER_STEP = {
    "binding": 14,
    "hidden": 8,
    "name": 8,
    "caption": 10,
    "colour": 5,
    "count": 3,
    "what": 10,
    "where": 7,
    "yes_no": 10,
    "motion": 5,
}
KINDS = tuple(PER_STEP)
KIND_WEIGHTS = {"binding": 2.0, "name": 1.5, "caption": 1.5, "yes_no": 1.5}
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


class Joiner:
    """Resampler and cross-attention of a model under one optimiser; all else is frozen."""

    def __init__(self, model: Flamingo, rate: float, num_steps: int) -> None:
        model.requires_grad_(False)
        groups = [
            {"params": [*model.resampler.parameters()], "weight_decay": 0.0},
            {"params": [*model.cross_attention.parameters()], "weight_decay": 0.1},
        ]
        self.trained = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: warmup_cosine(step, num_steps, 50)
        )

    def step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.schedule.step()


def align(
    model: Flamingo,
    aligner: Aligner,
    encoder: Encoder,
    run: Path,
    seed: int,
    num_steps: int,
    rate: float = 1e-3,
) -> Flamingo:
    """Teaches resampler and first block to say what the stand-ins said, of pictures and, the new
    thing after the contrastive stage, of films; each is seen by its own token and a few others."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    joiner, pool = Joiner(model, rate, num_steps), aligner.pool
    films = np.array(pool.numbers(lambda shown: shown.motion is not None))
    log = StageLog("align", num_steps, run / "log.jsonl")
    for _ in log.steps():
        pictures = rng.integers(len(pool.shown), size=PICTURES_PER_STEP - FILMS_PER_STEP)
        numbers = [*pictures.tolist(), *rng.choice(films, FILMS_PER_STEP).tolist()]
        seen_by = rng.integers(3, encoder.vocab_size, (len(numbers), TOKENS_PER_PICTURE))
        ids = torch.from_numpy(seen_by)
        ids[:, 0] = encoder.image
        with activations():
            losses = aligner.losses(encode(model, pool, numbers), numbers, ids)
        joiner.step(torch.stack(list(losses.values())).sum())
        log.add(**{name: loss.item() for name, loss in losses.items()})
    return model


def train_on_documents(
    model: Flamingo,
    aligner: Aligner,
    encoder: Encoder,
    tests: dict[str, Pool],
    sprites: Sprites,
    run: Path,
    seed: int,
    num_steps: int,
    rate: float = 6e-4,
) -> Flamingo:
    """Through the whole decoder; logs to `run`/log.jsonl and looks at the tests now and then."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    joiner, pool = Joiner(model, rate, num_steps), aligner.pool
    tasks = Tasks(PoolGallery(pool, sprites, rng), rng)
    before = [parameter.detach().clone() for parameter in joiner.trained]
    log = StageLog("documents", num_steps, run / "log.jsonl")
    log.write(evaluate(model, encoder, tests, sprites))
    for step in log.steps():
        joiner.step(training_loss(model, aligner, tasks, encoder, log))
        if (step + 1) % 200 == 0 or step + 1 == num_steps:
            log.write(evaluate(model, encoder, tests, sprites))
    with torch.no_grad():
        for parameter, start in zip(joiner.trained, before, strict=True):
            parameter.lerp_(start, KEPT_OF_START)
    return model


def training_loss(
    model: Flamingo, aligner: Aligner, tasks: Tasks, encoder: Encoder, log: StageLog
) -> Tensor:
    """The mean of the kinds' losses, and a little of the alignment of the pictures shown."""
    drawn = [
        encoder.examples(tasks.kinds[kind](), kind)
        for kind, num in PER_STEP.items()
        for _ in range(num)
    ]
    numbers = sorted({picture.number for tokens in drawn for picture in tokens.pictures})
    with activations():
        latents = encode(model, aligner.pool, numbers)
        ids = torch.full((len(numbers), 1), encoder.image)
        aligned = torch.stack([*aligner.losses(latents, numbers, ids).values()]).sum()
        parts = [
            token_losses(model, batch, latents[places(numbers, batch)])
            for batch in by_length(drawn, encoder.image)
        ]
    losses, right, kinds = (torch.cat(part) for part in zip(*parts, strict=True))
    figures: dict[str, float] = {}
    total = ALIGNMENT_WEIGHT * aligned
    for index, kind in enumerate(PER_STEP):
        own = kinds == index
        total = total + losses[own].mean() * KIND_WEIGHTS.get(kind, 1.0)
        figures |= {kind: losses[own].mean().item(), f"{kind}_right": right[own].mean().item()}
    log.add(align=aligned.item(), **figures)
    return total


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

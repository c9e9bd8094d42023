"""Stage 3, Flamingo: vision tower and language model frozen, resampler and cross-attention learn.

Made-up words are learned only where an earlier example has shown them, so that the only way to
win is to look and to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import DenseCrossAttention, DenseSelfAttention
from ...cross_attention import media_mask
from ...flamingo import Flamingo
from ...positions import reach
from ..log import StageLog, warmup_cosine
from .documents import Encoder, Example, Tokens
from .pictures import PictureBatch, PictureWorld, Pool
from .world import COLOUR_NAMES, COUNTS, Scene, Sprites

KINDS = ("binding", "colour", "count", "caption")
PER_STEP = (20, 12, 16, 4)
KIND_WEIGHTS = (1.0, 1.0, 1.0, 0.2)
PAIRS_PER_WARM_STEP = 64


class Probes(nn.Module):
    """What the mean latent must tell: background, count, and which pictures show the same emoji.

    They keep the resampler from dropping what no document of the moment asks for, and are thrown
    away after the stage.
    """

    def __init__(self, dim: int, joint: int = 128) -> None:
        super().__init__()
        self.identity = nn.Linear(dim, joint)
        self.background = nn.Linear(dim, len(COLOUR_NAMES))
        self.count = nn.Linear(dim, len(COUNTS))

    def forward(self, latents: Tensor, scenes: list[Scene]) -> dict[str, Tensor]:
        pooled = latents.mean(1)
        identity = F.normalize(self.identity(pooled).float(), dim=-1)
        background = torch.tensor([s.background for s in scenes])
        count = torch.tensor([s.count - 1 for s in scenes])
        return {
            "same": same_emoji_loss(identity, torch.tensor([s.sprite for s in scenes])),
            "probe_colour": F.cross_entropy(self.background(pooled).float(), background),
            "probe_count": F.cross_entropy(self.count(pooled).float(), count),
        }


def same_emoji_loss(identity: Tensor, sprites: Tensor, scale: float = 12.0) -> Tensor:
    """Supervised contrast: of all other pictures in the batch, those of the same emoji."""
    other = ~torch.eye(len(sprites), dtype=torch.bool)
    same = (sprites.unsqueeze(0) == sprites.unsqueeze(1)) & other
    scores = (identity @ identity.T).float() * scale
    scores = scores.masked_fill(~other, torch.finfo(torch.float32).min)
    found = same.any(1)
    losses = -(scores.log_softmax(-1) * same).sum(1)[found] / same.sum(1)[found]
    return losses.mean() if found.any() else scores.sum() * 0


def initialise(model: Flamingo, gate: float = 0.5) -> None:
    """An exact identity at the start that learns at once: gates open, output projections zero."""
    for block in model.blocks():
        for parameter in (block.attention_gate, block.feed_forward_gate):
            if parameter is not None:
                nn.init.constant_(parameter, gate)
        nn.init.zeros_(block.to_out.weight)
        if block.feed_forward is not None:
            nn.init.zeros_(block.feed_forward.get_parameter("down.weight"))


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


def document_loss(model: Flamingo, hidden: Tensor, batch: PictureBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy [n] of the learned tokens, weighted by kind, and which were right."""
    learned = batch.weights[:, 1:] > 0
    logits = model.logits(hidden[:, :-1][learned])
    targets = batch.ids[:, 1:][learned]
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return losses, logits.argmax(-1) == targets


def train_multimodal(
    model: Flamingo,
    encoder: Encoder,
    pool: Pool,
    test_pool: Pool,
    sprites: Sprites,
    run: Path,
    seed: int,
    num_steps: int,
    rate: float = 8e-4,
    warm_steps: int = 150,
) -> None:
    """Trains resampler and cross-attention in place; logs to `run`/log.jsonl."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    initialise(model)
    model.requires_grad_(False)
    trained = [*model.resampler.parameters(), *model.cross_attention.parameters()]
    probes = Probes(model.config.resampler.dim)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [
            {"params": [*model.resampler.parameters(), *probes.parameters()], "weight_decay": 0.0},
            {"params": [*model.cross_attention.parameters()], "weight_decay": 0.1},
        ],
        lr=rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, warm_steps + num_steps, 50)
    )
    world = PictureWorld(pool, sprites, encoder, rng)
    log = StageLog("flamingo", warm_steps + num_steps, run / "log.jsonl")
    for step in log.steps():
        progress = (step - warm_steps) / num_steps
        if step < warm_steps:
            loss = warm_start_loss(model, probes, pool, rng, log)
        else:
            loss = training_loss(model, probes, world, progress, log)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if step >= warm_steps and (step + 1) % 200 == 0:
            log.write(evaluate(model, encoder, test_pool, sprites))
    model.requires_grad_(False)


def warm_start_loss(
    model: Flamingo, probes: Probes, pool: Pool, rng: np.random.Generator, log: StageLog
) -> Tensor:
    """The resampler alone, on the probes, so that latents carry the picture from the first step:
    two pictures each of some emoji, and as many scenes with all counts."""
    chosen = rng.choice(list(pool.views), PAIRS_PER_WARM_STEP, replace=False)
    pairs = [int(i) for s in chosen for i in rng.choice(pool.views[int(s)], 2, replace=False)]
    counted = len(pool.scenes) - 1 - rng.integers(pool.num_count_scenes, size=len(pairs))
    drawn = [*pairs, *counted.tolist()]
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.resampler(pool.features[drawn].unsqueeze(1))
        losses = probes(latents, [pool.scenes[i] for i in drawn])
    log.add(**{name: loss.item() for name, loss in losses.items()})
    return torch.stack(list(losses.values())).sum()


def training_loss(
    model: Flamingo, probes: Probes, world: PictureWorld, progress: float, log: StageLog
) -> Tensor:
    """The weighted losses of all kinds of documents, and of the probes on their pictures."""
    documents = [
        world.document(kind, progress) for kind, num in enumerate(PER_STEP) for _ in range(num)
    ]
    shown = sorted({picture for document in documents for picture in document.pictures})
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.resampler(world.pool.features[shown].unsqueeze(1))
        probed = probes(latents, [world.pool.scenes[i] for i in shown])
        figures = list(probed.items())
        total = 0.3 * torch.stack(list(probed.values())).sum()
        for kinds in ((0,), tuple(range(1, len(KINDS)))):  # long and short rows apart: less padding
            chosen = [document for document in documents if document.kind in kinds]
            for kind, losses, right in kind_losses(model, chosen, shown, latents, world):
                total = total + KIND_WEIGHTS[kind] * losses.mean()
                figures += [(KINDS[kind], losses.mean()), (f"{KINDS[kind]}_right", right.mean())]
    log.add(**{name: value.item() for name, value in figures})
    return total


def kind_losses(
    model: Flamingo,
    documents: list[Tokens],
    shown: list[int],
    latents: Tensor,
    world: PictureWorld,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(kind, losses, 1 where right) of the learned tokens; `latents` are those of `shown`."""
    batch = PictureBatch.collate(documents, world.encoder.image)
    where = torch.searchsorted(torch.tensor(shown), batch.pictures).clamp(max=len(shown) - 1)
    hidden = forward(model, batch, latents[where])
    losses, right = document_loss(model, hidden, batch)
    kinds = batch.kinds[(batch.weights[:, 1:] > 0).nonzero()[:, 0]]
    for kind in kinds.unique().tolist():
        yield kind, losses[kinds == kind], right[kinds == kind].float()


@torch.no_grad()
def evaluate(
    model: Flamingo, encoder: Encoder, pool: Pool, sprites: Sprites, num: int = 128
) -> dict[str, float]:
    """Whole answers right under teacher forcing, on held-out emoji and held-out words."""
    world = PictureWorld(pool, sprites, encoder, np.random.default_rng(0), held_out_words=True)

    def last_only(examples: list[Example]) -> Tokens:
        silent = [Example(e.prompt, e.answer, 0.0, e.picture) for e in examples[:-1]]
        return encoder.examples([*silent, examples[-1]], 0, background=0.0)

    draws: dict[str, Callable[[], list[Example]]] = {
        "binding_2_way": lambda: world.episode(2, 3),
        "binding_5_way": lambda: world.episode(5, 6),
        "colour": lambda: world.colour(1.0),
        "count": lambda: world.count(1.0),
    }
    figures = {}
    for name, draw in draws.items():
        batch = PictureBatch.collate([last_only(draw()) for _ in range(num)], encoder.image)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.resampler(pool.features[batch.pictures.flatten()].unsqueeze(1))
            hidden = forward(model, batch, latents.unflatten(0, batch.pictures.shape))
            _, right = document_loss(model, hidden, batch)
        rows = (batch.weights[:, 1:] > 0).nonzero()[:, 0]
        wrong = torch.zeros(num).index_add(0, rows, (~right).float())
        figures[f"test_{name}"] = round((wrong == 0).float().mean().item(), 4)
    return figures

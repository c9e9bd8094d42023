"""Stage 3, Flamingo: vision tower and language model frozen, resampler and cross-attention learn.

The frozen tower's features are computed once, into a pool. Made-up words are learned only where
an earlier example has shown them, so that the only way to win is to look and to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from ...attention import DenseCrossAttention, DenseSelfAttention
from ...cross_attention import media_mask, visible_media
from ...flamingo import Flamingo
from ..log import StageLog, warmup_cosine
from .contrastive import normalise
from .documents import (
    BINDING_TEMPLATES,
    COLOUR_TEMPLATES,
    COUNT_TEMPLATES,
    Encoder,
    Example,
    Tokens,
    caption,
    colour_answer,
    count_answer,
    episode_labels,
    in_context_weights,
    made_up_words,
)
from .world import COLOUR_NAMES, COUNTS, Scene, Sprites, random_scene, render_scene

KINDS = ("binding", "colour", "count", "caption")
PER_STEP = (20, 12, 16, 4)
KIND_WEIGHTS = (1.0, 1.0, 1.0, 0.2)
PAIRS_PER_WARM_STEP = 64
VIEWS_PER_SPRITE = 16
NUM_COUNT_SCENES = 16_000
NUM_TEST_COUNT_SCENES = 800


@dataclass(frozen=True)
class Pool:
    """Scenes with the frozen tower's features, [N, S, dim] bfloat16."""

    scenes: list[Scene]
    features: Tensor
    views: dict[int, list[int]]  # sprite → its single pictures
    num_count_scenes: int  # the last scenes, which have all counts alike

    @classmethod
    def build(
        cls,
        scenes: list[Scene],
        num_count_scenes: int,
        model: Flamingo,
        sprites: Sprites,
        rng: np.random.Generator,
    ) -> Pool:
        views: dict[int, list[int]] = {}
        for index, scene in enumerate(scenes):
            if scene.count == 1:
                views.setdefault(scene.sprite, []).append(index)
        parts = []
        for start in track(range(0, len(scenes), 128), description="features"):
            drawn = [render_scene(s, sprites, rng) for s in scenes[start : start + 128]]
            parts.append(encode(model, np.stack(drawn)))
        return cls(scenes, torch.cat(parts), views, num_count_scenes)


@torch.no_grad()
def encode(model: Flamingo, pixels: np.ndarray) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features: Tensor = model.vision(normalise(pixels, model.config.vision))
    return features.bfloat16()


def training_scenes(sprites: Sprites, rng: np.random.Generator) -> list[Scene]:
    singles = [
        random_scene(sprite, rng, recolour=0.2)
        for sprite in sprites.training()
        for _ in range(VIEWS_PER_SPRITE)
    ]
    drawn = rng.choice(sprites.training(), NUM_COUNT_SCENES)
    counts = rng.integers(1, len(COUNTS) + 1, NUM_COUNT_SCENES)
    return singles + [random_scene(int(s), rng, int(c)) for s, c in zip(drawn, counts, strict=True)]


def held_out_scenes(sprites: Sprites, rng: np.random.Generator) -> list[Scene]:
    """The same of emoji that no stage has seen."""
    singles = [random_scene(sprite, rng) for sprite in sprites.test() for _ in range(6)]
    drawn = rng.choice(sprites.test(), NUM_TEST_COUNT_SCENES)
    counts = rng.integers(1, len(COUNTS) + 1, NUM_TEST_COUNT_SCENES)
    return singles + [random_scene(int(s), rng, int(c)) for s, c in zip(drawn, counts, strict=True)]


class PictureWorld:
    """Draws documents with pictures from a pool."""

    def __init__(
        self,
        pool: Pool,
        sprites: Sprites,
        encoder: Encoder,
        rng: np.random.Generator,
        held_out_words: bool = False,
    ) -> None:
        self.pool, self.sprites, self.encoder, self.rng = pool, sprites, encoder, rng
        self.held_out_words = held_out_words
        self.classes = list(pool.views)

    def document(self, kind: int, progress: float = 1.0) -> Tokens:
        drawn = (self.binding, self.colour, self.count, self.caption)[kind](progress)
        return self.encoder.examples(drawn, kind, background=0.0)

    def binding(self, progress: float) -> list[Example]:
        most = 2 if progress < 0.3 or self.rng.random() < 0.6 else 5
        num_ways = int(self.rng.integers(2, most + 1))
        return self.episode(num_ways, num_ways + int(self.rng.integers(1, 4)))

    def episode(self, num_ways: int, num_examples: int) -> list[Example]:
        """Every class once, then classes again; made-up words name them."""
        order = episode_labels(num_ways, num_examples, self.rng)
        classes = self.rng.choice(self.classes, num_ways, replace=False)
        words = made_up_words(num_ways, self.rng, self.held_out_words)
        prompt, answer = BINDING_TEMPLATES[self.rng.integers(len(BINDING_TEMPLATES))]
        return [
            Example(prompt, answer.format(words[c]), w, int(self.rng.choice(self.pool.views[s])))
            for c, w in zip(order, in_context_weights(order), strict=True)
            for s in (int(classes[c]),)
        ]

    def colour(self, progress: float) -> list[Example]:
        return self.questions(COLOUR_TEMPLATES, colour_answer, len(self.pool.scenes))

    def count(self, progress: float) -> list[Example]:
        return self.questions(COUNT_TEMPLATES, count_answer, self.pool.num_count_scenes)

    def questions(
        self,
        templates: tuple[tuple[str, str], ...],
        answer_of: Callable[[Scene], str],
        among_last: int,
    ) -> list[Example]:
        """One or two pictures, each asked about by itself."""
        examples = []
        for _ in range(self.rng.integers(1, 3)):
            index = len(self.pool.scenes) - 1 - int(self.rng.integers(among_last))
            prompt, answer = templates[self.rng.integers(len(templates))]
            said = answer_of(self.pool.scenes[index])
            examples.append(Example(prompt, answer.format(said), picture=index))
        return examples

    def caption(self, progress: float) -> list[Example]:
        index = int(self.rng.integers(len(self.pool.scenes)))
        return [Example("Output:", caption(self.pool.scenes[index], self.sprites), picture=index)]


@dataclass(frozen=True)
class PictureBatch:
    """Padded rows [B, T] with the pool numbers of their pictures [B, M]."""

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    media_index: Tensor
    pictures: Tensor

    @classmethod
    def collate(cls, documents: list[Tokens], image_token_id: int) -> PictureBatch:
        length = max(len(d.ids) for d in documents)
        num_media = max(len(d.pictures) for d in documents)

        def padded(rows: Iterable[Iterable[float]], fill: float, size: int) -> Tensor:
            filled = [[*row] + [fill] * (size - len([*row])) for row in rows]
            return torch.tensor(filled)

        return cls(
            ids=padded((d.ids for d in documents), 0, length),
            weights=padded((d.weights for d in documents), 0.0, length),
            kinds=torch.tensor([d.kind for d in documents]),
            media_index=padded(
                (visible_media(d.ids, image_token_id) for d in documents), -1, length
            ),
            pictures=padded((d.pictures for d in documents), 0, num_media),
        )


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
            nn.init.zeros_(block.feed_forward.down.weight)


def forward(model: Flamingo, batch: PictureBatch, latents: Tensor) -> Tensor:
    """`latents` [B, M, R, dim] of the batch's pictures → final hidden states [B, T, dim]."""
    sees_all = model.config.cross_attention.sees_all_media
    mask = media_mask(batch.media_index, latents.shape[1], sees_all)
    positions = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    hidden: Tensor = model(
        batch.ids,
        positions,
        DenseSelfAttention(*batch.ids.shape),
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

"""Stage 1, the vision tower: contrastive, as in the paper (appendix B.1.3), then frozen.

Two-term loss between pictures and captions, and between two views of the same emoji; small
heads for background and count keep what the questions will ask. Only the tower is kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...vision import build_vision
from ...vision_config import VisionConfig
from ..log import StageLog, warmup_cosine
from .world import COLOUR_NAMES, COUNTS, Pixels, Scene, Sprites, random_scene, render_scene

CLASSES_PER_STEP = 64


def normalise(pixels: Pixels, config: VisionConfig) -> Tensor:
    """[N, H, W, 3] uint8 → [N, 3, H, W] float, as the server's preprocessing does."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def caption_words(scene: Scene, sprites: Sprites) -> list[str]:
    named = sprites.nameable(scene.sprite) and scene.recolour is None
    name = sprites.names[scene.sprite].split() if named else []
    return [COUNTS[scene.count - 1], *name, f"{COLOUR_NAMES[scene.background]}-background"]


class ContrastiveHeads(nn.Module):
    """What is thrown away after the stage: projections, a bag-of-words text encoder, probes."""

    def __init__(self, dim: int, words: list[str], num_classes: int, joint: int = 128) -> None:
        super().__init__()
        self.words = {word: i for i, word in enumerate(words)}
        self.hidden = nn.Linear(dim, 2 * dim)
        self.pooled_norm = nn.BatchNorm1d(2 * dim)  # else all pictures start at one point
        self.identity = nn.Linear(2 * dim, joint)
        self.joint = nn.Linear(2 * dim, joint)
        self.proxies = nn.Embedding(num_classes, joint)
        self.text = nn.EmbeddingBag(len(words), dim, mode="sum")
        self.text_joint = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, joint))
        self.background = nn.Linear(2 * dim, len(COLOUR_NAMES))
        self.count = nn.Linear(2 * dim, len(COUNTS))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def pool(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.pooled_norm(F.silu(self.hidden(tokens)).mean(1))
        return pooled

    def embed_identity(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.identity(pooled).float(), dim=-1)

    def embed_text(self, captions: list[list[str]]) -> Tensor:
        ids = [torch.tensor([self.words[word] for word in words]) for words in captions]
        offsets = torch.tensor([0, *np.cumsum([len(i) for i in ids])[:-1].tolist()])
        return F.normalize(self.text_joint(self.text(torch.cat(ids), offsets)).float(), dim=-1)


def two_term_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Picture-to-text and text-to-picture cross-entropy over the batch (paper, equation 3)."""
    logits = a @ b.T * scale
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def draw_batch(sprites: Sprites, classes: list[int], rng: np.random.Generator) -> list[Scene]:
    """Two views each of some emoji: first all the first views, then all the second."""
    chosen = rng.choice(classes, CLASSES_PER_STEP, replace=False)
    counts = rng.choice([1, 2, 3, 4], 2 * len(chosen), p=[0.55, 0.15, 0.15, 0.15])
    doubled = [*chosen, *chosen]
    return [
        random_scene(int(sprite), rng, count=int(count), recolour=0.3)
        for sprite, count in zip(doubled, counts, strict=True)
    ]


def contrastive_loss(
    tower: nn.Module,
    heads: ContrastiveHeads,
    scenes: list[Scene],
    pixels: Tensor,
    sprites: Sprites,
    class_of: dict[int, int],
) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        pooled = heads.pool(tower(pixels.to(memory_format=torch.channels_last)))
        joint = F.normalize(heads.joint(pooled).float(), dim=-1)
        background, count = heads.background(pooled).float(), heads.count(pooled).float()
        identity = heads.embed_identity(pooled)
    scale = heads.log_scale.exp().clamp(max=50)
    half = len(scenes) // 2
    text = heads.embed_text([caption_words(scene, sprites) for scene in scenes])
    proxies = F.normalize(heads.proxies.weight, dim=-1)
    classes = torch.tensor([class_of[scene.sprite] for scene in scenes])
    return {
        "caption": two_term_loss(joint, text, scale),
        "views": two_term_loss(identity[:half], identity[half:], torch.tensor(12.0)),
        "classes": F.cross_entropy(identity @ proxies.T * 16, classes, label_smoothing=0.1),
        "background": F.cross_entropy(background, torch.tensor([s.background for s in scenes])),
        "count": F.cross_entropy(count, torch.tensor([s.count - 1 for s in scenes])),
    }


def train_vision(
    config: VisionConfig, sprites: Sprites, run: Path, seed: int, num_steps: int, rate: float = 2e-3
) -> nn.Module:
    """Trains the tower for `num_steps` of 128 pictures; logs to `run`/log.jsonl."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classes = sprites.training()
    class_of = {sprite: i for i, sprite in enumerate(classes)}
    words = sorted({w for name in sprites.names for w in name.split()})
    words += [*COUNTS, *(f"{c}-background" for c in COLOUR_NAMES)]
    tower: nn.Module = build_vision(config)
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    heads = ContrastiveHeads(config.dim, list(dict.fromkeys(words)), len(classes))
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, num_steps, 100)
    )
    log = StageLog("vision", num_steps, run / "log.jsonl")
    for _ in log.steps():
        scenes = draw_batch(sprites, classes, rng)
        pixels = np.stack([render_scene(scene, sprites, rng) for scene in scenes])
        losses = contrastive_loss(
            tower, heads, scenes, normalise(pixels, config), sprites, class_of
        )
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        log.add(**{name: value.item() for name, value in losses.items()})
    log.write({"held_out_1_shot_5_way": nearest_example(tower, heads, sprites, config, rng)})
    return tower.eval()


@torch.no_grad()
def nearest_example(
    tower: nn.Module,
    heads: ContrastiveHeads,
    sprites: Sprites,
    config: VisionConfig,
    rng: np.random.Generator,
    trials: int = 200,
) -> float:
    """Share of held-out emoji named rightly by their nearest single example among five."""
    right = 0
    for _ in range(trials):
        chosen = rng.choice(sprites.test(), 5, replace=False)
        drawn = [int(i) for i in (*chosen, chosen[0])]
        scenes = [render_scene(random_scene(i, rng), sprites, rng) for i in drawn]
        pooled = heads.pool(tower(normalise(np.stack(scenes), config)))
        embedded = heads.embed_identity(pooled)
        right += int((embedded[:5] @ embedded[5]).argmax() == 0)
    return right / trials

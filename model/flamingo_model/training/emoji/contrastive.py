"""Stage 1, the vision tower: contrastive, as in the paper (appendix B.1.3), then frozen.

Two-term loss between pictures and captions, and between two views of one emoji or drawing. Small
heads keep what will be asked: who is there and where, background, count, place. One more head are
the Flamingo's own resampler and first block, which go on from here in stage 3; of the others only
the classes' codes are kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...flamingo import Flamingo
from ...vision_config import VisionConfig
from ..optimise import Group, trained
from ..stages.contrastive import two_term_loss
from .alignment import Said, alignment_losses, written
from .colours import COLOUR_NAMES
from .precision import activations
from .seeded import SeededStage, by_shape
from .standins import CODE_DIM, CODE_SCALE, StandIns
from .world import (
    COUNTS,
    LAYOUTS,
    Pixels,
    Scene,
    Sprites,
    empty_scene,
    random_pair,
    random_scene,
    render_scene,
)

EMOJI_VIEWS, DRAWING_VIEWS, PAIRS, COUNTED, EMPTY = 28, 10, 33, 16, 3  # 128 pictures a step
ALONE_FOR = 400  # steps of the tower, before what is written of it is of any use to it
UNNAMED_SHARE = 0.25  # of the emoji in a batch: flags, faces, long names
TABLES = ("heads.proxies", "heads.mean_proxies", "heads.text.weight")
PLACES = ("whole", "first", "second")


def normalise(pixels: Pixels, config: VisionConfig) -> Tensor:
    """[N, H, W, 3] uint8 → [N, 3, H, W] float, as the server's preprocessing does."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (config.mean, config.std))
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std


def caption_words(scene: Scene, sprites: Sprites) -> list[str]:
    words = [f"{COLOUR_NAMES[scene.background]}-background", scene.layout]
    if scene.count:
        words.append(COUNTS[scene.count - 1])
    for sprite in scene.classes():
        if sprite >= 0 and sprites.nameable(sprite) and scene.recolour is None:
            words += sprites.names[sprite].split()
    return words


class ContrastiveHeads(nn.Module):
    """What is thrown away after the stage: projections, a bag-of-words text encoder, probes.

    `identity` tells who is there: on the whole, left or above, right or below. The last two look
    at the tokens through learned queries.
    """

    def __init__(self, dim: int, sprites: Sprites, joint: int = 128) -> None:
        super().__init__()
        said = sorted({word for name in sprites.names for word in name.split()})
        said += [*COUNTS, *LAYOUTS, *(f"{c}-background" for c in COLOUR_NAMES)]
        self.words = {word: i for i, word in enumerate(dict.fromkeys(said))}
        self.hidden = nn.Linear(dim, 2 * dim)
        self.queries = nn.Parameter(torch.randn(2, dim) * dim**-0.5)
        # By the batch alone, in evaluation too: a run that goes on has no running sums to lose.
        self.pooled_norms = nn.ModuleList(
            nn.BatchNorm1d(2 * dim, track_running_stats=False) for _ in PLACES
        )
        self.identity = nn.Linear(2 * dim, CODE_DIM)
        self.joint = nn.Linear(2 * dim, joint)
        # Both tables are normed after: small ones turn faster, a class is seen only now and then.
        self.proxies = nn.Parameter(torch.randn(sprites.num_classes, CODE_DIM) * 0.05)
        self.mean_proxies = nn.Parameter(torch.randn(sprites.num_classes, dim) * 0.05)
        self.text = nn.EmbeddingBag(len(self.words), dim, mode="sum")
        nn.init.normal_(self.text.weight, std=0.05)
        self.text_joint = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, joint))
        self.background = nn.Linear(2 * dim, len(COLOUR_NAMES))
        self.count = nn.Linear(2 * dim, len(COUNTS))
        self.layout = nn.Linear(2 * dim, len(LAYOUTS))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def pool(self, tokens: Tensor) -> Tensor:
        """[N, S, dim] → [3, N, 2 dim], one for each of `PLACES`."""
        hidden = F.silu(self.hidden(tokens))
        looked = (tokens @ self.queries.T).float().softmax(1).to(hidden.dtype)  # [N, S, 2]
        parts = [hidden.mean(1), *(looked.transpose(1, 2) @ hidden).unbind(1)]
        return torch.stack([norm(x) for norm, x in zip(self.pooled_norms, parts, strict=True)])

    def embed_identity(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.identity(pooled).float(), dim=-1)

    def embed_text(self, captions: list[list[str]]) -> Tensor:
        ids = [torch.tensor([self.words[word] for word in words]) for words in captions]
        offsets = torch.tensor([0, *np.cumsum([len(i) for i in ids])[:-1].tolist()])
        return F.normalize(self.text_joint(self.text(torch.cat(ids), offsets)).float(), dim=-1)

    def codes(self) -> Tensor:
        """[num_classes, CODE_DIM] of length 1: what a class looks like."""
        return F.normalize(self.proxies, dim=-1)

    def class_logits(self, identity: Tensor) -> Tensor:
        return identity @ self.codes().T * CODE_SCALE

    def mean_logits(self, tokens: Tensor) -> Tensor:
        """[N, S, dim] → [N, num_classes]: who is told by the tower's mean alone, by which the
        server's embeddings find like pictures (RICES)."""
        mean = F.normalize(tokens.float().mean(1), dim=-1)
        return mean @ F.normalize(self.mean_proxies, dim=-1).T * CODE_SCALE


class SceneWorld:
    """Draws the pictures of a step: views of emoji and drawings, pairs, counts."""

    def __init__(self, sprites: Sprites, rng: np.random.Generator) -> None:
        self.sprites, self.rng = sprites, rng
        self.named = sprites.known()
        self.others = sorted(set(sprites.training()) - set(self.named)) or self.named
        self.drawings = sprites.drawings()

    def emoji(self, num: int) -> list[int]:
        """Distinct ones, most of them with names."""
        num_others = min(round(num * UNNAMED_SHARE), len(self.others))
        named = self.rng.choice(self.named, num - num_others, replace=False)
        return [*named.tolist(), *self.rng.choice(self.others, num_others, replace=False).tolist()]

    def batch(self) -> list[Scene]:
        """First all the first views, then all the second, then pairs, counts, backgrounds."""
        drawn = self.rng.choice(self.drawings, DRAWING_VIEWS, replace=False).tolist()
        viewed = [*self.emoji(EMOJI_VIEWS), *drawn]
        views = [random_scene(s, self.rng, recolour=0.3) for s in (*viewed, *viewed)]
        paired = self.rng.permutation(self.emoji(2 * PAIRS)).reshape(PAIRS, 2).tolist()
        pairs = [random_pair(first, second, self.rng) for first, second in paired]
        counts = self.rng.integers(1, len(COUNTS) + 1, COUNTED).tolist()
        counted = [
            random_scene(sprite, self.rng, count, recolour=0.3)
            for sprite, count in zip(self.emoji(COUNTED), counts, strict=True)
        ]
        return [*views, *pairs, *counted, *(empty_scene(self.rng) for _ in range(EMPTY))]

    def render(self, scenes: Sequence[Scene], config: VisionConfig) -> Tensor:
        drawn = [render_scene(scene, self.sprites, self.rng) for scene in scenes]
        return normalise(np.stack(drawn), config)


def said_of(scenes: Sequence[Scene]) -> Said:
    """What can be said of pictures."""
    classes = [s.classes() for s in scenes]
    facts = [[s.background, s.count - 1, LAYOUTS.index(s.layout), -1] for s in scenes]
    return Said(torch.tensor(classes), torch.tensor(facts))


def written_losses(
    model: Flamingo, stand_ins: StandIns, heads: ContrastiveHeads, tokens: Tensor, said: Said
) -> dict[str, Tensor]:
    """Of what the resampler and the first block make of the tower's tokens, whoever looks."""
    with activations():
        latents = model.resampler(tokens.unsqueeze(1))
        vectors = written(model, latents, torch.randn(len(tokens), 1, model.config.decoder.dim))
    losses = alignment_losses(stand_ins, heads.codes(), vectors, said)
    num_views = EMOJI_VIEWS + DRAWING_VIEWS
    looks = stand_ins.read_code(vectors[: 2 * num_views, 0], 0)
    first, again = looks.split(num_views)
    losses["views"] = two_term_loss(first, again, torch.tensor(16.0), 0.0)
    return {f"written_{name}": loss for name, loss in losses.items()}


def contrastive_loss(
    heads: ContrastiveHeads, tokens: Tensor, scenes: list[Scene], sprites: Sprites
) -> dict[str, Tensor]:
    with activations():
        pooled = heads.pool(tokens)
        joint = F.normalize(heads.joint(pooled[0]).float(), dim=-1)
        identity = heads.embed_identity(pooled)
        background, count = heads.background(pooled[0]), heads.count(pooled[0])
        layout = heads.layout(pooled[0])
    emoji = torch.tensor([s.sprite < len(sprites.names) for s in scenes])
    first, second = torch.tensor([s.classes() for s in scenes]).unbind(1)
    pair = second >= 0
    single = ~pair & (first >= 0)
    num_views = EMOJI_VIEWS + DRAWING_VIEWS
    text = heads.embed_text(
        [caption_words(s, sprites) for s in scenes if s.sprite < len(sprites.names)]
    )
    means = F.log_softmax(heads.mean_logits(tokens), dim=1)
    both = (first, torch.where(pair, second, first))

    def told(logits: Tensor, targets: list[int], where: Tensor) -> Tensor:
        return F.cross_entropy(logits.float()[where], torch.tensor(targets)[where])

    def classes(place: int, who: Tensor, where: Tensor) -> Tensor:
        return F.cross_entropy(heads.class_logits(identity[place, where]), who[where])

    return {
        "caption": two_term_loss(joint[emoji], text, heads.log_scale.exp().clamp(max=50), 0.0),
        "views": two_term_loss(
            identity[0, :num_views], identity[0, num_views : 2 * num_views], torch.tensor(16.0), 0.0
        ),
        "classes": classes(0, first, single),
        "pairs": (classes(1, first, pair) + classes(2, second, pair)) / 2,
        "means": torch.stack([F.nll_loss(means, who, ignore_index=-1) for who in both]).mean(),
        "background": told(background, [s.background for s in scenes], emoji),
        "count": told(count, [s.count - 1 for s in scenes], emoji & single),
        "layout": told(layout, [LAYOUTS.index(s.layout) for s in scenes], emoji),
    }


class VisionStage(SeededStage):
    """Trains the tower, and with it, as one more head, resampler and first block, which write what
    the stand-ins say. Matrices and convolutions by Muon, which needs half of AdamW's steps here."""

    def __init__(
        self,
        model: Flamingo,
        heads: ContrastiveHeads,
        stand_ins: StandIns,
        sprites: Sprites,
        seed: int,
    ) -> None:
        super().__init__(seed)
        self.model, self.heads, self.stand_ins, self.sprites = model, heads, stand_ins, sprites
        parts = {"vision": model.vision, "heads": heads, "resampler": model.resampler}
        self.module = nn.ModuleDict({**parts, "first_block": model.blocks()[0]})
        self.world = SceneWorld(sprites, self.rng)

    def groups(self) -> list[Group]:
        learned = trained(self.module)
        tables = {k: p for k, p in learned.items() if k in TABLES}
        joins = {k: p for k, p in learned.items() if k.startswith(("resampler.", "first_block."))}
        rest = {k: p for k, p in learned.items() if k not in tables and k not in joins}
        return [*by_shape(rest, rate=2.0), *by_shape(joins), Group(tables, False, rate=2.0)]

    def losses(self, step: int) -> tuple[Tensor, dict[str, float]]:
        scenes = self.world.batch()
        pixels = self.world.render(scenes, self.model.config.vision)
        with activations():
            tokens = self.model.vision(pixels.to(memory_format=torch.channels_last))
        losses = contrastive_loss(self.heads, tokens, scenes, self.sprites)
        seen = tokens if step >= ALONE_FOR else tokens.detach()
        losses |= written_losses(self.model, self.stand_ins, self.heads, seen, said_of(scenes))
        return torch.stack([*losses.values()]).sum(), {k: v.item() for k, v in losses.items()}

    def evaluate(self) -> dict[str, float]:
        return evaluate(self.model, self.heads, self.stand_ins, self.sprites)


@torch.no_grad()
def evaluate(
    model: Flamingo,
    heads: ContrastiveHeads,
    stand_ins: StandIns,
    sprites: Sprites,
    num: int = 256,
) -> dict[str, float]:
    """Held-out emoji by their nearest single example among five, known ones among all names, both
    of a pair: as the heads tell them, and as they are read from what the first block writes."""
    world = SceneWorld(sprites, np.random.default_rng(0))
    rng, known = world.rng, torch.tensor(world.named)

    episodes = [rng.choice(sprites.test(), 5, replace=False).tolist() for _ in range(num)]
    names = rng.choice(world.named, num).tolist()
    paired = rng.choice(world.named, (num, 2)).tolist()
    scenes = [
        *(random_scene(s, rng) for episode in episodes for s in episode),
        *(random_scene(episode[0], rng) for episode in episodes),
        *(random_scene(name, rng) for name in names),
        *(random_pair(first, second, rng) for first, second in paired),
    ]
    with activations():
        tokens = model.vision(world.render(scenes, model.config.vision))
        told = heads.embed_identity(heads.pool(tokens))  # [3, N, CODE_DIM]
        hidden = torch.zeros(len(tokens), 1, model.config.decoder.dim)
        vectors = written(model, model.resampler(tokens.unsqueeze(1)), hidden)[:, 0]
    read = torch.stack([stand_ins.read_code(vectors, place) for place in (0, 0, 1)])
    mean = F.normalize(tokens.float().mean(1), dim=-1)

    def near(looks: Tensor) -> Tensor:
        shown, asked = looks[: 5 * num].unflatten(0, (num, 5)), looks[5 * num : 6 * num]
        return torch.einsum("nkd,nd->nk", shown, asked).argmax(-1) == 0

    def among_names(looks: Tensor) -> Tensor:
        return known[heads.class_logits(looks)[..., known].argmax(-1)]

    right = {"mean_held_out_1_shot_5_way": near(mean)}
    for reader, looks in (("", told), ("written_", read)):
        right |= {
            f"{reader}held_out_1_shot_5_way": near(looks[0]),
            f"{reader}known_named": among_names(looks[0, 6 * num : 7 * num]) == torch.tensor(names),
            f"{reader}pairs_named": (
                among_names(looks[1:, 7 * num :]) == torch.tensor(paired).T
            ).all(0),
        }
    return {figure: which.float().mean().item() for figure, which in right.items()}

"""Contrastive pre-training of the vision tower with a text encoder (paper, section B.1.3).

Of every document the first picture and all of its text. Two terms, picture to text and text to
picture, over the batch of each dataset; the temperature is learned. Only the tower is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import plain_attention
from ...config import DecoderConfig
from ...decoder import Decoder, SelfAttend
from ...flamingo import Flamingo
from ..base import Base
from ..config import ContrastiveConfig, DatasetConfig
from ..data.document import BadRecord, Document, MediaPart, TextPart
from ..loop import Term
from ..mixture import Drawn
from ..objective import padded
from ..optimise import Group, split_decay, trained
from ..pixels import Frames, augment, read_media
from .files import FilesStage


@dataclass(frozen=True)
class Pair:
    picture: Frames  # [1, H, W, 3]
    ids: tuple[int, ...]


class TextEncoder(nn.Module):
    """[B, T] ids and lengths [B] → [B, width]: a transformer that sees both ways, its mean."""

    def __init__(self, vocab_size: int, config: ContrastiveConfig) -> None:
        super().__init__()
        width, heads = config.text_width, config.text_heads
        self.decoder = Decoder(
            DecoderConfig(
                vocab_size=vocab_size,
                dim=width,
                num_layers=config.text_layers,
                num_heads=heads,
                head_dim=width // heads,
                ff_dim=2 * width,
                max_positions=4096,
            )
        )

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        seen = positions < lengths.unsqueeze(1)  # [B, T]
        hidden = self.decoder(ids, positions, both_ways(seen[:, None, None]))
        mean: Tensor = (hidden * seen.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)
        return mean


def both_ways(mask: Tensor) -> SelfAttend:
    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, heads, T, D]
        return plain_attention(q, k, v, mask).transpose(1, 2)

    return attend


class TwoTowers(nn.Module):
    """Pictures and texts → unit vectors of one space; `log_scale` is the inverse temperature's."""

    def __init__(self, model: Flamingo, config: ContrastiveConfig) -> None:
        super().__init__()
        self.model, self.max_scale = model, config.max_scale
        self.text = TextEncoder(model.config.decoder.vocab_size, config)
        self.picture_joint = nn.Linear(model.config.vision.dim, config.dim, bias=False)
        self.text_joint = nn.Linear(config.text_width, config.dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, pixels: Tensor, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W], [B, T], [B] → two of [B, joint]"""
        pictures = self.picture_joint(self.model.vision(pixels).mean(1))
        texts = self.text_joint(self.text(ids, lengths))
        return F.normalize(pictures.float(), dim=-1), F.normalize(texts.float(), dim=-1)

    def scale(self) -> Tensor:
        return self.log_scale.exp().clamp(max=self.max_scale)


def two_term_loss(pictures: Tensor, texts: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Each picture must find its text among all, and each text its picture (equation 3)."""
    scores = pictures @ texts.T * scale
    target = torch.arange(len(scores), device=scores.device)
    both = (F.cross_entropy(x, target, label_smoothing=smoothing) for x in (scores, scores.T))
    return torch.stack([*both]).mean()


class ContrastiveStage(FilesStage[Pair, TwoTowers]):
    def build(self, base: Base) -> TwoTowers:
        self.tokenizer = base.tokenizer
        self.transform = base.model.config.vision.pixel_transform()
        torch.manual_seed(self.config.train.seed)
        module = TwoTowers(base.model, self.config.contrastive).to(self.world.device)
        module.model.vision.requires_grad_(True)
        return module

    def read(self, document: Document, dataset: DatasetConfig, rng: np.random.Generator) -> Pair:
        media = [part for part in document.parts if isinstance(part, MediaPart)]
        text = "".join(part.text for part in document.parts if isinstance(part, TextPart))
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: dataset.length]
        if not media or media[0].kind != "image" or not ids:
            raise BadRecord(f"{document.place}: contrastive training needs a picture and text")
        frames = read_media(media[0], self.transform, dataset, document.place)
        return Pair(augment(frames, dataset, rng), tuple(ids))

    def units(self) -> list[nn.Module]:
        return [self.module.model.vision, self.module.text]

    def groups(self) -> list[Group]:
        return split_decay(trained(self.module), ())

    def terms(self, step: int) -> Iterator[Term]:
        for drawn in self.mixture.draw(step):
            config = self.mixture.streams[drawn.dataset].config
            loss, right = self.loss(drawn.items)
            figures = {"loss": loss.item() * config.weight, f"loss/{config.label}": loss.item()}
            figures |= {f"right/{config.label}": right, "scale": self.module.scale().item()}
            share = {name: value / self.world.size for name, value in figures.items()}
            yield Term(loss * config.weight, share)

    def loss(self, pairs: Sequence[Pair]) -> tuple[Tensor, float]:
        """Of the whole batch, in every process, and how many texts find their picture first.

        Gradients of the vectors are this process's own, so they add up; those of the temperature
        are the same in all, so each counts for its share.
        """
        with self.half():
            pictures, texts = self.embed(pairs)
        pictures, texts = self.world.gather(pictures), self.world.gather(texts)
        if not len(texts):
            return (pictures.sum() + texts.sum()) * 0, 0.0
        scale, size = self.module.scale(), self.world.size
        scale = scale / size + (scale - scale / size).detach()
        loss = two_term_loss(pictures, texts, scale, self.config.contrastive.label_smoothing)
        right = (texts @ pictures.T).argmax(1) == torch.arange(len(texts), device=texts.device)
        return loss, right.float().mean().item()

    def embed(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Without pairs, of a blank one that is cut away: shards are gathered by all or none."""
        size = self.transform.size
        kept = pairs or [Pair(np.zeros((1, size, size, 3), np.uint8), (0,))]
        pixels = torch.from_numpy(
            self.transform.normalise(np.concatenate([pair.picture for pair in kept]))
        )
        ids = padded([pair.ids for pair in kept], 0)
        lengths = torch.tensor([len(pair.ids) for pair in kept])
        inputs = (x.to(self.world.device) for x in (pixels, ids, lengths))
        pictures, texts = self.module(*inputs)
        return pictures[: len(pairs)], texts[: len(pairs)]

    def mean_loss(self, drawn: Drawn[Pair], dataset: DatasetConfig) -> float:
        return self.loss(drawn.items)[0].item()

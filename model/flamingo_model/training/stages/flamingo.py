"""Flamingo's own stage: interleaved documents, loss on their text, most of the network frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...flamingo import Flamingo
from ..base import Base
from ..config import Config, DatasetConfig
from ..data.document import Document
from ..loop import Term
from ..lora import add_lora
from ..mixture import Drawn
from ..objective import Batch, Objective, Shown, collate, recompute
from ..optimise import Group, split_decay, trained
from ..pixels import Frames, augment, read_media
from ..rows import Row, RowWriter
from .files import FilesStage

UNDECAYED = ("model.resampler.", "model.decoder.embed.", "model.decoder.head.")
"""The paper's rule for the resampler (section B.1.2); tables of rare tokens would shrink."""


@dataclass(frozen=True)
class Item:
    """A document ready to be learned."""

    row: Row
    frames: tuple[Frames, ...]

    @property
    def num_learned(self) -> int:
        return sum(self.row.learned[1:])


class FlamingoStage(FilesStage[Item, Objective]):
    def build(self, base: Base) -> Objective:
        self.transform = base.model.config.vision.pixel_transform()
        self.writer = RowWriter(base.tokenizer, base.model.config)
        return Objective(prepare_model(base.model, self.config, self.world.device))

    def read(self, document: Document, dataset: DatasetConfig, rng: np.random.Generator) -> Item:
        row = self.writer.write(document, dataset, rng)
        frames = (read_media(m, self.transform, dataset, document.place) for m in row.media)
        return Item(row, tuple(augment(pixels, dataset, rng) for pixels in frames))

    def units(self) -> list[nn.Module]:
        model = self.module.model
        return [model.vision, model.resampler, *model.decoder.layers, *model.cross_attention]

    def groups(self) -> list[Group]:
        return split_decay(trained(self.module), UNDECAYED)

    def terms(self, step: int) -> Iterator[Term]:
        drawn = sorted(self.mixture.draw(step), key=lambda found: self.order().index(found.dataset))
        is_merged = self.config.train.accumulation == "merged"
        for batch in [drawn] if is_merged else [[found] for found in drawn]:
            counts = self.counts(batch)
            if any(counts):
                yield self.term(self.collate(batch), counts)

    def order(self) -> list[int]:
        """Datasets, the largest batch first: what that keeps for the way back is then never beside
        the gradients of another."""
        sizes = [stream.config.batch * stream.config.length for stream in self.mixture.streams]
        return sorted(range(len(sizes)), key=lambda dataset: -sizes[dataset])

    def counts(self, drawn: Sequence[Drawn[Item]]) -> list[float]:
        """Learned tokens of each dataset, over all processes."""
        counts = [0.0] * len(self.mixture.streams)
        for found in drawn:
            counts[found.dataset] += sum(item.num_learned for item in found.items)
        return self.world.sum(counts)

    def collate(self, drawn: Sequence[Drawn[Item]]) -> Batch:
        items = [(item, found.dataset) for found in drawn for item in found.items]
        batch = collate(
            [item.row for item, _ in items],
            [item.frames for item, _ in items],
            [dataset for _, dataset in items],
            self.transform,
        )
        return batch.to(self.world.device)

    def term(self, batch: Batch, counts: Sequence[float]) -> Term:
        """Σ λ · mean loss over those datasets that have learned tokens here."""
        losses, owners = self.losses(batch)
        datasets = [stream.config for stream in self.mixture.streams]
        scale = [1 / count if count else 0.0 for count in counts]
        weights = [dataset.weight * s for dataset, s in zip(datasets, scale, strict=True)]
        loss = (losses * torch.tensor(weights, device=losses.device)[owners]).sum()
        sums = losses.detach().new_zeros(len(counts)).index_add(0, owners, losses.detach())
        figures = {
            f"loss/{datasets[i].label}": sums[i].item() * scale[i]
            for i, count in enumerate(counts)
            if count
        }
        return Term(loss, {"loss": loss.item(), "tokens": float(len(losses))} | figures)

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Objective.forward`."""
        shown = self.shown(batch)
        with self.half():
            out: tuple[torch.Tensor, torch.Tensor] = self.module(batch, shown)
        return out

    def shown(self, batch: Batch) -> Shown:
        """All processes must do the same, also one whose share has no films."""
        alone = Shown.of(batch)
        if self.world.mesh is None:
            return alone
        longest = max(s.config.max_frames for m in (self.mixture, self.held_out) for s in m.streams)
        here = [float(n in alone.frames) for n in range(longest + 1)]
        *any_has, num_media = self.world.most([*here, alone.num_media])
        return Shown(tuple(n for n, has in enumerate(any_has) if has), round(num_media))

    def mean_loss(self, drawn: Drawn[Item], dataset: DatasetConfig) -> float:
        losses, _ = self.losses(self.collate([drawn]))
        total, count = self.world.sum([losses.sum().item(), len(losses)])
        return total / max(1, count)


def prepare_model(model: Flamingo, config: Config, device: torch.device) -> Flamingo:
    """Chooses what learns. In bf16, what is frozen is rounded and what learns is not."""
    if "lora" in config.train.what:
        add_lora(model.decoder, config.lora, config.train.seed)
    for part in config.train.what:
        for module in learners(model, part):
            module.requires_grad_(True)
    if config.train.precision == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if config.train.gradient_checkpointing:
        for module in (*model.decoder.layers, *model.cross_attention):
            recompute(module)
    return model.to(device)


def learners(model: Flamingo, part: str) -> list[nn.Module]:
    if part == "embeddings":
        has_head = not model.decoder.config.tie_embeddings
        return [model.decoder.embed, *([model.decoder.head] if has_head else [])]
    return [] if part == "lora" else [model.get_submodule(part)]

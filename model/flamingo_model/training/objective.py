"""The paper's objective: Σ over datasets of λ · the mean loss of its learned tokens.

A batch is padded rows. Media are encoded in groups of as many frames; what neither the vision
tower nor the resampler learns from is encoded without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import DenseCrossAttention, DenseSelfAttention, no_media
from ..cross_attention import CrossAttend, media_mask
from ..decoder import Decoder
from ..flamingo import Flamingo
from ..media import Transform
from ..positions import reach
from .pixels import Frames
from .rows import Row

ROWS_AT_ONCE = 64  # of logits: a step's peak is here, beside all that waits for the way back


@dataclass(frozen=True)
class MediaGroup:
    """Media of as many frames: normalised pixels [n, T, 3, H, W], and where they stand, [n]."""

    pixels: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Batch:
    """Padded rows; `dataset` [B] says whose each row is."""

    ids: Tensor  # [B, T]
    media_index: Tensor  # [B, T]
    learned: Tensor  # [B, T]
    dataset: Tensor  # [B]
    groups: dict[int, MediaGroup]  # by the number of frames
    num_media: int  # of the row with the most

    def to(self, device: torch.device) -> Batch:
        groups = {
            n: MediaGroup(g.pixels.to(device), g.rows.to(device), g.columns.to(device))
            for n, g in self.groups.items()
        }
        names = ("ids", "media_index", "learned", "dataset")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, groups=groups, **moved)


@dataclass(frozen=True)
class Shown:
    """What all processes have to encode together, whatever each of them has."""

    frames: tuple[int, ...]
    num_media: int

    @classmethod
    def of(cls, batch: Batch) -> Shown:
        return cls(tuple(sorted(batch.groups)), batch.num_media)


def collate(
    rows: Sequence[Row],
    frames: Sequence[Sequence[Frames]],
    datasets: Sequence[int],
    transform: Transform,
) -> Batch:
    """`frames` are the media of each row, uint8 [T, H, W, 3]. No rows are one empty row."""
    rows = rows or [Row((0,), (-1,), (False,))]
    return Batch(
        padded([row.ids for row in rows], 0),
        padded([row.media_index for row in rows], -1),
        padded([row.learned for row in rows], 0).bool(),
        torch.tensor(datasets or [0]),
        grouped(frames, transform),
        max(len(row.media) for row in rows),
    )


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """[B, T], filled on the right: a causal model never sees what stands there."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def grouped(frames: Sequence[Sequence[Frames]], transform: Transform) -> dict[int, MediaGroup]:
    places: dict[int, list[tuple[int, int]]] = {}
    for row, media in enumerate(frames):
        for column, pixels in enumerate(media):
            places.setdefault(len(pixels), []).append((row, column))
    groups = {}
    for number, found in sorted(places.items()):
        stacked = transform.normalise(np.stack([frames[row][column] for row, column in found]))
        where = torch.tensor(found)
        groups[number] = MediaGroup(torch.from_numpy(stacked), where[:, 0], where[:, 1])
    return groups


class Objective(nn.Module):
    """The network with its loss, so that one call is all that happens to weights in a step."""

    def __init__(self, model: Flamingo) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, shown: Shown) -> tuple[Tensor, Tensor]:
        """Cross-entropy [n] of the learned tokens, and whose rows they are in, [n]."""
        hidden = self.hidden(batch, self.cross_attend(batch, shown))
        chosen = batch.learned[:, 1:]
        losses = token_losses(self.model.decoder, hidden[:, :-1][chosen], batch.ids[:, 1:][chosen])
        if shown.num_media and not len(losses):
            losses = losses + hidden.sum() * 0  # so that its shards take part in the way back
        return losses, batch.dataset.unsqueeze(1).expand_as(chosen)[chosen]

    def hidden(self, batch: Batch, cross_attend: CrossAttend) -> Tensor:
        num_rows, length = batch.ids.shape
        positions = torch.arange(length, device=batch.ids.device).expand_as(batch.ids)
        see = DenseSelfAttention(
            num_rows, length, reach(self.model.config.decoder), torch.zeros_like(batch.ids)
        )
        out: Tensor = self.model(batch.ids, positions, see, cross_attend)
        return out

    def cross_attend(self, batch: Batch, shown: Shown) -> CrossAttend:
        if not shown.num_media:
            return no_media
        sees_all = self.model.config.cross_attention.sees_all_media
        mask = media_mask(batch.media_index, shown.num_media, sees_all)
        return DenseCrossAttention(self.model.project_media(self.latents(batch, shown)), mask)

    def latents(self, batch: Batch, shown: Shown) -> Tensor:
        """[B, M, R, dim]; where a row has fewer media, zeros that nothing sees."""
        config = self.model.config.resampler
        out = torch.zeros(
            (len(batch.ids), shown.num_media, config.num_latents, config.dim),
            device=batch.ids.device,
        )
        for frames in shown.frames:
            group = batch.groups.get(frames)
            if group is None:
                out = out + self.encode(self.blank(frames, batch.ids.device)).sum() * 0
            else:
                latents = self.encode(group.pixels).to(out.dtype)
                out = out.index_put((group.rows, group.columns), latents)
        return out

    def blank(self, frames: int, device: torch.device) -> Tensor:
        size = self.model.config.vision.image_size
        return torch.zeros((1, frames, 3, size, size), device=device)

    def encode(self, pixels: Tensor) -> Tensor:
        """`Flamingo.encode_media`, keeping no more for the way back than is needed."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns(self.model.vision)):
            features = self.model.vision(pixels.flatten(0, 1))
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and (features.requires_grad or learns(self.model.resampler))
        ):
            latents: Tensor = self.model.resampler(features.unflatten(0, pixels.shape[:2]))
        return latents


def token_losses(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy [n] of hidden states [n, dim].

    With a frozen head no more than `ROWS_AT_ONCE` rows of logits are ever there: a whole batch of
    them, with their gradients, would be most of a step's memory.
    """
    head = decoder.embed if decoder.config.tie_embeddings else decoder.head
    if learns(head) or learns(decoder.project_out) or not hidden.requires_grad:
        logits = decoder.logits(hidden)
        return F.cross_entropy(logits.float(), targets, reduction="none")
    losses: Tensor = LossInParts.apply(hidden, targets, decoder)  # type: ignore[no-untyped-call]
    return losses


class LossInParts(torch.autograd.Function):
    """Each row's loss depends on that row alone: its gradient is made at once, and waits."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, decoder: Decoder) -> Tensor:
        losses, gradients = [], []
        pieces = zip(hidden.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
        for rows, wanted in pieces:
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                found = F.cross_entropy(decoder.logits(rows).float(), wanted, reduction="none")
                gradients += torch.autograd.grad(found.sum(), rows)
            losses.append(found.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * upstream.unsqueeze(1)).to(gradients.dtype), None, None


def learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def recompute(module: nn.Module) -> None:
    """Keeps a module's input only, and computes what is inside again on the way back."""
    module.forward = partial(checkpoint, module.forward, use_reentrant=False)

"""The first block's write must be what the stand-ins say: the vector of what a picture shows.

So the frozen decoder, which learned from stand-ins, understands pictures from the first step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention import DenseCrossAttention
from ...flamingo import Flamingo, MediaKV
from .standins import CODE_SCALE, StandIns


@dataclass(frozen=True)
class Said:
    """Of pictures: the classes [P, 2] of what they show, -1 for nobody, and `FACTS` [P, 4]."""

    classes: Tensor
    facts: Tensor

    def __getitem__(self, which: Tensor) -> Said:
        return Said(self.classes[which], self.facts[which])


def written(model: Flamingo, latents: Tensor, hidden: Tensor) -> Tensor:
    """What the first block adds to tokens `hidden` [P, n, dim] that see `latents` [P, R, dim]."""
    block = model.blocks()[0]
    keys, values = block.project_media(latents.unsqueeze(1))  # [P, 1, heads, R, head_dim]
    mask = torch.ones(*hidden.shape[:2], 1, dtype=torch.bool)
    attend = DenseCrossAttention(MediaKV(keys[None], values[None]), mask)
    out: Tensor = block(hidden, 0, attend) - hidden
    return out.float()


def alignment_losses(
    stand_ins: StandIns, codes: Tensor, vectors: Tensor, said: Said
) -> dict[str, Tensor]:
    """Cross-entropy of everything read from `vectors` [P, n, dim], and the squared error relative
    to the stand-ins' size. `codes` [num_classes, CODE_DIM] are of length 1."""
    losses = {"size": relative_error(vectors, stand_ins(*told(codes, said)))}
    parts = [
        classified(stand_ins.read_code(vectors, place) @ codes.T * CODE_SCALE, who)
        for place, who in enumerate(said.classes.unbind(1))
    ]
    losses["who"] = torch.cat(parts).mean()
    for (fact, logits), value in zip(
        stand_ins.read_facts(vectors).items(), said.facts.unbind(1), strict=True
    ):
        losses[fact] = classified(logits, value).sum() / (value >= 0).sum().clamp(min=1)
    return losses


def told(codes: Tensor, said: Said) -> tuple[Tensor, Tensor]:
    """What `StandIns` takes."""
    absent = F.pad(codes, (0, 0, 1, 0))  # 0 is nobody
    return absent[said.classes + 1], said.facts


def relative_error(vectors: Tensor, targets: Tensor) -> Tensor:
    error: Tensor = (vectors - targets.unsqueeze(1)).square().mean() / targets.square().mean()
    return error


def classified(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [P, n, values], each the mean over n, where targets [P] are told."""
    where = targets >= 0
    each = logits[where].flatten(0, 1), targets[where].repeat_interleave(logits.shape[1])
    losses = F.cross_entropy(*each, reduction="none")
    return torch.unflatten(losses, 0, (-1, logits.shape[1])).mean(1)

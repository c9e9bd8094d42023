"""Language-model pre-training: the decoder alone, on the text of documents, packed into rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import DenseSelfAttention
from ...flamingo import Flamingo
from ...positions import reach
from ..base import Base
from ..config import DatasetConfig
from ..data.document import Document, TextPart
from ..loop import Term
from ..mixture import Drawn
from ..objective import padded, recompute
from ..optimise import Group, split_decay, trained
from ..rows import Row, RowWriter
from .files import FilesStage

UNDECAYED = ("model.decoder.embed.", "model.decoder.head.")


class LanguageObjective(nn.Module):
    def __init__(self, model: Flamingo) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, learned: Tensor, segments: Tensor, positions: Tensor) -> Tensor:
        """All [B, T] → the cross-entropy [n] of the learned tokens."""
        decoder = self.model.decoder
        see = DenseSelfAttention(len(ids), ids.shape[1], reach(decoder.config), segments)
        hidden = decoder(ids, positions, see)[:, :-1]
        logits = decoder.logits(hidden[learned[:, 1:]])
        losses = F.cross_entropy(logits.float(), ids[:, 1:][learned[:, 1:]], reduction="none")
        return losses if len(losses) else losses + hidden.sum() * 0


def pack(rows: Sequence[Row], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whole documents side by side: ids, learned, segments (0 is padding) and positions, [B, T].

    A document's first token has nothing before it to be told by.
    """
    lines = list[list[Row]]()
    for row in rows:
        if not lines or sum(len(r.ids) for r in lines[-1]) + len(row.ids) > length:
            lines.append([])
        lines[-1].append(row)
    joined: list[list[list[int]]] = [[], [], [], []]
    for line in lines or [[Row((0,), (-1,), (False,))]]:
        values = list[int](), list[int](), list[int](), list[int]()
        for segment, row in enumerate(line, 1):
            values[0].extend(row.ids)
            values[1].extend([0, *row.learned[1:]])
            values[2].extend([segment] * len(row.ids))
            values[3].extend(range(len(row.ids)))
        for kind, found in zip(joined, values, strict=True):
            kind.append(found)
    ids, learned, segments, positions = (padded(kind, 0) for kind in joined)
    return ids, learned.bool(), segments, positions


class LanguageStage(FilesStage[Row, LanguageObjective]):
    def build(self, base: Base) -> LanguageObjective:
        self.writer = RowWriter(
            base.tokenizer, base.model.config, base.model.config.tokens.end_of_text
        )
        module = LanguageObjective(base.model).to(self.world.device)
        decoder = module.model.decoder.requires_grad_(True)
        for layer in decoder.layers if self.config.train.gradient_checkpointing else ():
            recompute(layer)
        return module

    def read(self, document: Document, dataset: DatasetConfig, rng: np.random.Generator) -> Row:
        texts = tuple(part for part in document.parts if isinstance(part, TextPart))
        return self.writer.write(replace(document, parts=texts), dataset, rng)

    def units(self) -> list[nn.Module]:
        return [*self.module.model.decoder.layers]

    def groups(self) -> list[Group]:
        return split_decay(trained(self.module), UNDECAYED)

    def terms(self, step: int) -> Iterator[Term]:
        for drawn in self.mixture.draw(step):
            config = self.mixture.streams[drawn.dataset].config
            losses, count = self.losses(drawn, config)
            if count:
                loss = losses.sum() / count
                figures = {"loss": loss.item() * config.weight, "tokens": float(len(losses))}
                yield Term(loss * config.weight, figures | {f"loss/{config.label}": loss.item()})

    def losses(self, drawn: Drawn[Row], config: DatasetConfig) -> tuple[Tensor, float]:
        """Of the learned tokens here, and how many there are in all processes."""
        packed = pack(drawn.items, config.length)
        with self.half():
            losses = self.module(*(x.to(self.world.device) for x in packed))
        return losses, self.world.sum([len(losses)])[0]

    def mean_loss(self, drawn: Drawn[Row], dataset: DatasetConfig) -> float:
        losses, count = self.losses(drawn, dataset)
        return self.world.sum([losses.sum().item()])[0] / max(1, count)

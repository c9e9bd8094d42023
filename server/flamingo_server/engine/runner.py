"""A plan → tensors → one forward pass. It owns the model and the cache tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flamingo_model.attention import (
    Batch,
    CachedCrossAttention,
    CachedSelfAttention,
    MediaRun,
    Span,
)
from flamingo_model.cache import MediaSlots, SelfAttentionCache
from flamingo_model.flamingo import Flamingo

from .request import Media, Request
from .scheduler import Plan

ENCODE_AT_ONCE = 16  # pictures per vision batch: bounds memory, keeps other requests flowing


class Runner:
    """Runs encodes and steps on the device, and in the dtype, of the model's weights."""

    def __init__(self, model: Flamingo, num_rows: int, max_length: int, num_slots: int) -> None:
        device, dtype = model.decoder.embed.weight.device, model.decoder.embed.weight.dtype
        self.model, self.device, self.dtype = model, device, dtype
        self.sees_all_media = model.config.cross_attention.sees_all_media
        self.transform = model.config.vision.pixel_transform()
        self.rows = SelfAttentionCache(model.config, num_rows, max_length, device, dtype)
        self.slots = MediaSlots(model.config, num_slots, device, dtype)

    @torch.inference_mode()
    def encode(self, media: list[Media]) -> list[Tensor]:
        """The latents [R, dim] of each, media of equally many frames together."""
        latents: dict[str, Tensor] = {}
        for num_frames in sorted({len(m.pixels) for m in media}):
            alike = [m for m in media if len(m.pixels) == num_frames]
            for start in range(0, len(alike), ENCODE_AT_ONCE):
                chunk = alike[start : start + ENCODE_AT_ONCE]
                for one, encoded in zip(chunk, self.encode_chunk(chunk), strict=True):
                    latents[one.digest] = encoded.clone()  # a view would keep its whole chunk
        return [latents[m.digest] for m in media]

    def encode_chunk(self, media: list[Media]) -> Tensor:
        pixels = self.transform.normalise(np.stack([m.pixels for m in media]))
        return self.model.encode_media(torch.from_numpy(pixels).to(self.device, self.dtype))

    @torch.inference_mode()
    def fill_slots(self, slots: list[int], latents: list[Tensor]) -> None:
        """Projects keys and values once, for every step and request that follows."""
        self.slots.write(slots, self.model.project_media(torch.stack(latents)))

    @torch.inference_mode()
    def step(self, plan: Plan) -> Tensor:
        """Logits [decodes + prefills, vocab]: of each decode, then of each prompt's last token."""
        batch, last = self.prepare(plan)
        hidden = self.model(
            batch.token_ids,
            batch.positions,
            CachedSelfAttention(self.rows, batch),
            CachedCrossAttention(self.slots, batch),
        )
        return self.model.logits(hidden[last]).cpu()

    def prepare(self, plan: Plan) -> tuple[Batch, list[int]]:
        """The flat batch, and where in it the tokens stand whose logits are wanted."""
        ids = [s.generated[-1] for s in plan.decodes]
        positions = [s.num_tokens - 1 for s in plan.decodes]
        rows = [s.row for s in plan.decodes]
        last = list(range(len(ids)))
        spans, runs = [], []
        for request in plan.prefills:
            begin, tokens = len(ids), request.prompt.token_ids
            spans.append(Span(request.sequences[0].row, begin, begin + len(tokens)))
            runs += media_runs(request, begin, self.sees_all_media)
            ids += tokens
            positions += range(len(tokens))
            rows += [request.sequences[0].row] * len(tokens)
            last.append(len(ids) - 1)
        batch = Batch(
            token_ids=self.tensor(ids),
            positions=self.tensor(positions),
            rows=self.tensor(rows),
            num_decoding=len(plan.decodes),
            media_slots=self.media_slots(plan),
            spans=tuple(spans),
            runs=tuple(runs),
        )
        return batch, last

    def media_slots(self, plan: Plan) -> Tensor:
        """What each decode sees: one slot [B], or all so far [B, M] with -1 on the left."""
        if not self.sees_all_media:
            return self.tensor([s.last_slot for s in plan.decodes])
        seen = [s.seen_slots for s in plan.decodes]
        width = max([1, *map(len, seen)])
        flat = [slot for slots in seen for slot in [-1] * (width - len(slots)) + slots]
        return self.tensor(flat).view(-1, width)

    def share_prompt(self, request: Request) -> None:
        """Copies the first sequence's row to its siblings: the prompt runs once for all."""
        first, *others = request.sequences
        for other in others:
            self.rows.copy_row(first.row, other.row, len(request.prompt.token_ids))

    @torch.inference_mode()
    def clear_rows(self, rows: list[int]) -> None:
        """Wipes what may not be finite: a masked NaN still spoils the row's next owner."""
        for cache in (self.rows.k, self.rows.v):
            cache[:, rows] = 0

    def tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def media_runs(request: Request, offset: int, sees_all: bool = False) -> list[MediaRun]:
    """Neighbouring prompt tokens that see the same media, as runs of the flat batch."""
    index = request.prompt.media_index
    earlier = request.slots if sees_all else []
    bounds = [i for i in range(len(index)) if i == 0 or index[i] != index[i - 1]] + [len(index)]
    return [
        MediaRun(request.slots[last], offset + begin, offset + end, tuple(earlier[:last]))
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True)
        if (last := index[begin]) >= 0
    ]

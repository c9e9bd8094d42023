"""How queries meet keys: whole sequences at once (training, reference) or through the caches.

The network calls these as `attend(layer, q, k, v)`; what they remember is theirs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import MediaSlots, SelfAttentionCache
from .flamingo import MediaKV
from .positions import Reach


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention of [..., heads, T, D] under a boolean mask; rows that see nothing give 0.

    Written out because its backward pass beats the fused kernel's on short sequences on a CPU.
    """
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float()
    scores = scores if bias is None else scores + bias
    weights = scores.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1)
    out: Tensor = (weights * mask).to(v.dtype) @ v
    return out


class DenseSelfAttention:
    """Causal attention over padded rows [B, T], without a cache.

    `reach` is the model's; distances are counted along the row, so packing leaves them as they are.
    `segment_ids` [B, T] keeps packed documents apart: a token sees its own document only.
    """

    def __init__(
        self,
        batch_size: int,
        length: int,
        reach: Reach,
        segment_ids: Tensor | None = None,
    ) -> None:
        device = segment_ids.device if segment_ids is not None else None
        positions = torch.arange(length, device=device)
        self.bias = reach.bias(positions, positions)
        self.mask = reach.seen(positions, positions).expand(batch_size, 1, length, length)
        if segment_ids is not None:
            same = segment_ids.unsqueeze(-1) == segment_ids.unsqueeze(-2)
            self.mask = self.mask & same.unsqueeze(1)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        group = q.shape[2] // k.shape[2]
        k, v = (x if group == 1 else x.repeat_interleave(group, dim=2) for x in (k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, heads, T, D]
        return plain_attention(q, k, v, self.mask, self.bias).transpose(1, 2)


class DenseCrossAttention:
    """Rows [B, T] look at the pictures of their own row: media [num_blocks, B, M, heads, R, D].

    `mask` is [B, T, M], as `media_mask` makes it.
    """

    def __init__(self, media: MediaKV, mask: Tensor) -> None:
        num_latents = media.k.shape[-2]
        self.k, self.v = (x.transpose(2, 3).flatten(3, 4) for x in (media.k, media.v))
        self.mask = mask.repeat_interleave(num_latents, dim=-1).unsqueeze(1)  # [B, 1, T, M*R]

    def __call__(self, block: int, q: Tensor) -> Tensor:
        out = plain_attention(q.transpose(1, 2), self.k[block], self.v[block], self.mask)
        return out.transpose(1, 2)


def no_media(block: int, q: Tensor) -> Tensor:
    """Cross-attention of a text-only batch: every token sees nothing."""
    return torch.zeros_like(q)


@dataclass(frozen=True)
class Span:
    """A run of prompt tokens of one sequence inside a flat batch: tokens [begin, end)."""

    row: int
    begin: int
    end: int
    start: int = 0  # position of the first of them in its sequence

    @property
    def stop(self) -> int:
        """Position behind the last of them."""
        return self.start + self.end - self.begin


@dataclass(frozen=True)
class MediaRun:
    """Prompt tokens [begin, end) of a flat batch that all see the picture in `slot`.

    `earlier` holds the slots of those before it, for a model that looks at all.
    """

    slot: int
    begin: int
    end: int
    earlier: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Flat tokens [N] of many sequences: first one token each of those decoding, then spans.

    `media_slots` holds the slot each decoding token sees, -1 for none; `runs` the same for spans.
    Where a model looks at all pictures so far it is [num_decoding, M], filled with -1 on the left.
    """

    token_ids: Tensor
    positions: Tensor
    rows: Tensor
    num_decoding: int
    media_slots: Tensor
    spans: tuple[Span, ...]
    runs: tuple[MediaRun, ...]


class CachedSelfAttention:
    """Writes the batch's keys and values into the cache, then attends to each token's own row."""

    def __init__(self, cache: SelfAttentionCache, batch: Batch) -> None:
        self.cache, self.batch = cache, batch
        self.decoding = slice(0, batch.num_decoding)
        self.masks = [self.span_mask(span) for span in batch.spans]
        if batch.num_decoding:
            positions = batch.positions[self.decoding].unsqueeze(1)  # one query a row
            self.length = int(positions.max()) + 1
            self.mask = self.reach_mask(positions, self.length)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.batch.rows, self.batch.positions, k, v)
        out = torch.empty_like(q)
        if self.batch.num_decoding:
            out[self.decoding] = self.decode(layer, q[self.decoding])
        for span, mask in zip(self.batch.spans, self.masks, strict=True):
            out[span.begin : span.end] = self.prefill(layer, q[span.begin : span.end], span, mask)
        return out

    def decode(self, layer: int, q: Tensor) -> Tensor:
        """One token per sequence, [B, heads, head_dim]."""
        rows = self.batch.rows[self.decoding]
        k, v = (c[layer][rows, :, : self.length] for c in (self.cache.k, self.cache.v))
        return fused_attention(q.unsqueeze(2), k, v, self.mask).squeeze(2)

    def prefill(self, layer: int, q: Tensor, span: Span, mask: Tensor | None) -> Tensor:
        """Many tokens of one sequence, [n, heads, head_dim]; all before them is in the cache."""
        k, v = (
            c[layer, span.row, :, : span.stop].unsqueeze(0) for c in (self.cache.k, self.cache.v)
        )
        queries = q.transpose(0, 1).unsqueeze(0)  # [1, heads, n, head_dim]
        return fused_attention(queries, k, v, mask).squeeze(0).transpose(0, 1)

    def span_mask(self, span: Span) -> Tensor | None:
        """None where the kernel's own causal rule will do."""
        if self.cache.reach.is_plain and span.start == 0:
            return None
        positions = torch.arange(span.start, span.stop, device=self.batch.positions.device)
        return self.reach_mask(positions.unsqueeze(0), span.stop)  # [1, 1 or heads, n, stop]

    def reach_mask(self, queries: Tensor, length: int) -> Tensor:
        """What queries at positions [B, n] see of a row's first `length` places.

        Four dimensions, never three: with those torch leaves its fast kernel on a CPU.
        """
        keys = torch.arange(length, device=queries.device)
        return self.cache.reach.mask(queries, keys, self.cache.k.dtype)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, heads, n, D] against [B, kv_heads, length, D]; without a mask, causal.

    In lower precision the kernels keep scores and softmax in float32, as `plain_attention` does.
    """
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


class CachedCrossAttention:
    """Each token reads the slot of the one picture it sees: the cost does not grow with shots.

    Unless the model looks at all pictures so far: then a token reads the slots of all.
    """

    def __init__(self, media: MediaSlots, batch: Batch) -> None:
        self.media, self.batch = media, batch
        slots = batch.media_slots
        slots = slots.unsqueeze(1) if slots.dim() == 1 else slots  # [B, M]
        last = slots[:, -1:]
        self.seeing = last >= 0
        self.slots = slots.where(slots >= 0, last).clamp(min=0)  # what is masked is read, too
        self.mask: Tensor | None = None
        if slots.shape[1] > 1:
            seen = (slots >= 0) | ~self.seeing
            self.mask = seen.repeat_interleave(media.k.shape[-2], dim=1)[:, None, None]

    def __call__(self, block: int, q: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        if self.batch.num_decoding:
            out[: self.batch.num_decoding] = self.decode(block, q[: self.batch.num_decoding])
        for run in self.batch.runs:
            out[run.begin : run.end] = self.prefill(block, q[run.begin : run.end], run)
        return out

    def decode(self, block: int, q: Tensor) -> Tensor:
        k, v = (joined(c[block][self.slots]) for c in (self.media.k, self.media.v))
        out = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=self.mask).squeeze(2)
        return out.masked_fill(~self.seeing.unsqueeze(-1), 0)

    def prefill(self, block: int, q: Tensor, run: MediaRun) -> Tensor:
        slots = [*run.earlier, run.slot] if run.earlier else slice(run.slot, run.slot + 1)
        k, v = (joined(c[block, slots].unsqueeze(0)) for c in (self.media.k, self.media.v))
        out = F.scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), k, v)
        return out.squeeze(0).transpose(0, 1)


def joined(pictures: Tensor) -> Tensor:
    """[B, M, heads, R, head_dim] → [B, heads, M*R, head_dim]; a view where M is 1."""
    return pictures.transpose(1, 2).flatten(2, 3)

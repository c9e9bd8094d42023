"""How queries meet keys in whole sequences at once, as training and references have them.

The network calls these as `attend(layer, q, k, v)`; what they remember is theirs alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    out: Tensor = (weights.to(v.dtype) @ v) * mask.any(-1, keepdim=True)
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

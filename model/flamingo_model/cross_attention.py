"""GATED XATTN-DENSE, and the rule of which token sees which picture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from .config import CrossAttentionConfig
from .resampler import FeedForward

CrossAttend = Callable[[int, Tensor], Tensor]
"""(block, queries [..., heads, head_dim]) → what the visible pictures answer, 0 where none is."""


def visible_media(token_ids: Sequence[int], image_token_id: int) -> list[int]:
    """`last_marked_media` where one token stands for every media."""
    return last_marked_media(token_ids, {image_token_id})


def last_marked_media(token_ids: Sequence[int], marker_ids: Collection[int]) -> list[int]:
    """For each token the index of the one media it sees, or -1 for none.

    The paper's φ (section 3.1.3): a token sees the last media at or before it, and no other;
    text before the first media sees nothing. Any of `marker_ids` is where a media stands.
    """
    seen, index = -1, []
    for token in token_ids:
        seen += token in marker_ids
        index.append(seen)
    return index


def media_mask(media_index: Tensor, num_media: int, sees_all: bool = False) -> Tensor:
    """[..., T] media indices → [..., T, num_media] booleans, True where a token may look.

    With `sees_all` that is its media and all before it.
    """
    media = torch.arange(num_media, device=media_index.device)
    last = media_index.unsqueeze(-1)
    return media <= last if sees_all else media == last


class GatedCrossAttention(nn.Module):
    """y + tanh(a)·attention(y, media), then y + tanh(b)·ffw(y); both gates start at 0.

    Paper, section 3.1.2 and figure 4. A token that sees no media gets exactly 0 from attention
    (no bias), while its feed-forward branch still runs. The config may leave out the feed-forward
    or the gates.
    """

    def __init__(self, dim: int, media_dim: int, config: CrossAttentionConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(dim)
        self.norm_media = nn.LayerNorm(media_dim) if config.norm_media else nn.Identity()
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(media_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.feed_forward = (
            FeedForward(dim, config.ff_mult, config.activation) if config.has_feed_forward else None
        )
        self.attention_gate = closed_gate() if config.is_gated else None
        has_second = config.is_gated and config.has_feed_forward
        self.feed_forward_gate = closed_gate() if has_second else None

    def project_media(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """[..., R, media_dim] → keys and values, each [..., heads, R, head_dim]."""
        k, v = self.to_kv(self.norm_media(latents)).chunk(2, dim=-1)
        return self.split(k).transpose(-3, -2), self.split(v).transpose(-3, -2)

    def forward(self, hidden: Tensor, block: int, attend: CrossAttend) -> Tensor:
        """`hidden` [..., dim]; `attend` holds the media keys and values, never this layer."""
        seen = attend(block, self.split(self.to_q(self.norm(hidden))))  # [..., heads, head_dim]
        hidden = hidden + gated(self.attention_gate, self.to_out(seen.flatten(-2)))
        if self.feed_forward is None:
            return hidden
        return hidden + gated(self.feed_forward_gate, self.feed_forward(hidden))

    def split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1))  # [..., heads, head_dim]


def closed_gate() -> nn.Parameter:
    return nn.Parameter(torch.zeros(()))


def gated(gate: Tensor | None, x: Tensor) -> Tensor:
    return x if gate is None else gate.tanh() * x

"""GATED XATTN-DENSE, and the rule of which token sees which picture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import CrossAttentionConfig
from .resampler import FeedForward

CrossAttend = Callable[[int, Tensor], Tensor]
"""(block, queries [..., heads, head_dim]) → what the visible pictures answer, 0 where none is."""


def visible_media(token_ids: Sequence[int], image_token_id: int) -> list[int]:
    """`last_marked_media` where one token stands for a media."""
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


@dataclass(frozen=True)
class MarkIds:
    """The ids by which rules find media; flamingo-mini has two of them, `<` with a space or not."""

    media: frozenset[int]
    end_of_text: int | None = None


@dataclass(frozen=True)
class MediaRule:
    """Which token of one sequence sees which media: those of the prompt, then all new ones."""

    prompt: Callable[[Sequence[int], MarkIds], list[int]]
    goes_on: bool = True  # new tokens see what the prompt's last one sees; else nothing

    def generated(self, media_index: Sequence[int]) -> int:
        return media_index[-1] if self.goes_on and media_index else -1


def last_media(token_ids: Sequence[int], marks: MarkIds) -> list[int]:
    """The paper's rule: also OpenFlamingo 2 and flamingo-mini."""
    return last_marked_media(token_ids, marks.media)


def media_until_end_of_text(token_ids: Sequence[int], marks: MarkIds) -> list[int]:
    """IDEFICS: behind an end of text, which itself still sees, nothing is seen until a media."""
    index, is_over = last_media(token_ids, marks), False
    for place, token in enumerate(token_ids):
        is_over = is_over and token not in marks.media
        index[place] = -1 if is_over else index[place]
        is_over = is_over or token == marks.end_of_text
    return index


def next_media(token_ids: Sequence[int], marks: MarkIds) -> list[int]:
    """OpenFlamingo 1: a media's token sees it, every other token the media after it, if any."""
    index = last_media(token_ids, marks)
    num_media = index[-1] + 1 if index else 0
    for place, token in enumerate(token_ids):
        seen = index[place] + (token not in marks.media)
        index[place] = seen if seen < num_media else -1
    return index


MEDIA_RULES = {
    "last": MediaRule(last_media),
    "last_in_prompt": MediaRule(last_media, goes_on=False),  # Otter
    "until_end_of_text": MediaRule(media_until_end_of_text),
    "legacy": MediaRule(next_media, goes_on=False),
}


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
        self.norm: nn.Module = nn.LayerNorm(dim)
        self.norm_media = nn.LayerNorm(media_dim) if config.norm_media else nn.Identity()
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(media_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)
        self.feed_forward: nn.Module | None = None
        if config.has_feed_forward:
            self.feed_forward = FeedForward(dim, config.ff_mult, config.activation)
        self.attention_gate = closed_gate() if config.is_gated else None
        has_second = config.is_gated and config.has_feed_forward
        self.feed_forward_gate = closed_gate() if has_second else None

    def project_media(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """[..., R, media_dim] → keys and values, each [..., heads, R, head_dim]."""
        k, v = self.to_kv(self.norm_media(latents)).chunk(2, dim=-1)
        return self.k_norm(self.split(k).transpose(-3, -2)), self.split(v).transpose(-3, -2)

    def forward(self, hidden: Tensor, block: int, attend: CrossAttend) -> Tensor:
        """`hidden` [..., dim]; `attend` holds the media keys and values, never this layer."""
        seen = attend(block, self.queries(self.norm(hidden)))  # [..., heads, head_dim]
        hidden = hidden + gated(self.attention_gate, self.to_out(seen.flatten(-2)))
        if self.feed_forward is None:
            return hidden
        return hidden + gated(self.feed_forward_gate, self.feed_forward(hidden))

    def queries(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.q_norm(self.split(self.to_q(hidden)))
        return out

    def split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1))  # [..., heads, head_dim]


class GatedFeedForward(nn.Module):
    """RMSNorm, then SwiGLU without biases."""

    def __init__(self, dim: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=eps)
        self.gate = nn.Linear(dim, inner, bias=False)
        self.up = nn.Linear(dim, inner, bias=False)
        self.down = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class IdeficsCrossAttention(GatedCrossAttention):
    """IDEFICS: LLaMA's norms and feed-forward; queries and keys may be normed, each head alone."""

    def __init__(self, dim: int, media_dim: int, config: CrossAttentionConfig) -> None:
        super().__init__(dim, media_dim, config)
        eps, inner = config.norm_eps, config.ff_dim or config.ff_mult * dim
        self.norm = nn.RMSNorm(dim, eps=eps)
        if config.query_key_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=eps)
        self.feed_forward = GatedFeedForward(dim, inner, eps)
        if config.has_vector_gates:
            self.attention_gate, self.feed_forward_gate = closed_gate(dim), closed_gate(dim)


CROSS_ATTENTION_KINDS: dict[str, type[GatedCrossAttention]] = {
    "flamingo": GatedCrossAttention,
    "idefics": IdeficsCrossAttention,
}


def build_cross_attention(
    dim: int, media_dim: int, config: CrossAttentionConfig
) -> GatedCrossAttention:
    """The block that `config.kind` names."""
    return CROSS_ATTENTION_KINDS[config.kind](dim, media_dim, config)


def closed_gate(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def gated(gate: Tensor | None, x: Tensor) -> Tensor:
    return x if gate is None else gate.tanh() * x

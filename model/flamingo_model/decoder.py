"""The frozen language model, described by its config. It knows nothing of pictures.

Every state is an argument: `attend` holds the key/value cache, `before_layer` is where the gated
cross-attention blocks come in. What differs between language models is an entry in one of the
tables here, or a kind of positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import gelu_tanh
from .config import DecoderConfig
from .positions import POSITIONS, Turn

SelfAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v) → attention output shaped like q [..., heads, head_dim].

k and v are [..., kv_heads, head_dim]. Which keys a query sees, and ALiBi, are its own affair: it is
made with the model's `reach`.
"""
BeforeLayer = Callable[[int, Tensor], Tensor]
Branch = Callable[[Tensor], Tensor]

# In lower precision torch itself takes a norm's statistics in float32, on CPU and CUDA.
NORMS: dict[str, Callable[[int, DecoderConfig], nn.Module]] = {
    "rms": lambda dim, config: nn.RMSNorm(dim, eps=config.norm_eps),
    "layer": lambda dim, config: nn.LayerNorm(dim, eps=config.norm_eps, bias=config.norm_bias),
}

ACTIVATIONS: dict[str, Branch] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
}


ROWS_AT_ONCE = 8192  # of a head that is widened to float32


def norm(dim: int, config: DecoderConfig) -> nn.Module:
    return NORMS[config.norm](dim, config)


class DecoderLayer(nn.Module):
    """Self-attention and feed-forward; `BLOCKS` says how they and their norms are put together."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim, inner = config.dim, config.num_heads * config.head_dim
        kv = config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.activation, self.block = ACTIVATIONS[config.activation], BLOCKS[config.block]
        self.attention_norm = norm(dim, config)
        self.q = nn.Linear(dim, inner, bias=config.attention_bias)
        self.k = nn.Linear(dim, kv, bias=config.attention_bias)
        self.v = nn.Linear(dim, kv, bias=config.attention_bias)
        self.q_norm = norm(inner, config) if config.query_key_norm else nn.Identity()
        self.k_norm = norm(kv, config) if config.query_key_norm else nn.Identity()
        self.out = nn.Linear(inner, dim, bias=config.out_bias)
        if config.block != "parallel_shared":
            self.feed_forward_norm = norm(dim, config)
        self.is_gated = config.gated
        if config.gated:
            self.gate = nn.Linear(dim, config.ff_dim, bias=config.feed_forward_bias)
        self.up = nn.Linear(dim, config.ff_dim, bias=config.feed_forward_bias)
        self.down = nn.Linear(config.ff_dim, dim, bias=config.feed_forward_bias)

    def forward(self, x: Tensor, layer: int, attend: SelfAttend, turn: Turn) -> Tensor:
        return self.block(self, x, lambda hidden: self.attention(hidden, layer, attend, turn))

    def attention(self, hidden: Tensor, layer: int, attend: SelfAttend, turn: Turn) -> Tensor:
        q = self.split(self.q_norm(self.q(hidden)))
        k = self.split(self.k_norm(self.k(hidden)))
        attended = attend(layer, turn(q), turn(k), self.split(self.v(hidden)))
        out: Tensor = self.out(attended.flatten(-2))
        return out

    def feed_forward(self, hidden: Tensor) -> Tensor:
        up = self.up(hidden)
        wide = self.activation(self.gate(hidden)) * up if self.is_gated else self.activation(up)
        out: Tensor = self.down(wide)
        return out

    def split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.head_dim))  # [..., heads, head_dim]


def pre_norm(layer: DecoderLayer, x: Tensor, attention: Branch) -> Tensor:
    x = x + attention(layer.attention_norm(x))
    return x + layer.feed_forward(layer.feed_forward_norm(x))


def post_norm(layer: DecoderLayer, x: Tensor, attention: Branch) -> Tensor:
    """The sums are normed, not the inputs of the branches (OPT-350m)."""
    x = layer.attention_norm(x + attention(x))
    out: Tensor = layer.feed_forward_norm(x + layer.feed_forward(x))
    return out


def parallel(layer: DecoderLayer, x: Tensor, attention: Branch) -> Tensor:
    """Both branches read the layer's input (GPT-NeoX)."""
    feed_forward = layer.feed_forward(layer.feed_forward_norm(x))
    return x + attention(layer.attention_norm(x)) + feed_forward


def parallel_shared(layer: DecoderLayer, x: Tensor, attention: Branch) -> Tensor:
    """Both branches read one norm of the layer's input (GPT-J)."""
    hidden = layer.attention_norm(x)
    return x + attention(hidden) + layer.feed_forward(hidden)


BLOCKS: dict[str, Callable[[DecoderLayer, Tensor, Branch], Tensor]] = {
    "pre_norm": pre_norm,
    "post_norm": post_norm,
    "parallel": parallel,
    "parallel_shared": parallel_shared,
}


class Decoder(nn.Module):
    """Token ids [...] and positions [...] → final hidden states [..., dim]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.token_dim)
        self.project_in = projection(config.token_dim, config.dim)
        self.positions = POSITIONS[config.positions](config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = norm(config.dim, config) if config.final_norm else nn.Identity()
        self.project_out = projection(config.dim, config.token_dim)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.token_dim, config.vocab_size, bias=config.head_bias)
        self.packed_head: nn.Module | None = None  # in place of the head, see `packing`

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: SelfAttend,
        before_layer: BeforeLayer | None = None,
    ) -> Tensor:
        hidden = self.embedded(token_ids, positions)
        turn = self.positions.turn(positions, hidden.dtype)
        for index, layer in enumerate(self.layers):
            if before_layer is not None:
                hidden = before_layer(index, hidden)
            hidden = layer(hidden, index, attend, turn)
        out: Tensor = self.norm(hidden)
        return out

    def embedded(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """What the first layer is given, [..., dim]"""
        return self.positions.add(self.project_in(self.embed(token_ids)), positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] → [..., vocab_size], in float32 whatever the weights are."""
        hidden = self.project_out(hidden)
        if self.packed_head is not None:
            out: Tensor = self.packed_head(hidden)
            return out
        if self.config.tie_embeddings:
            return float32_linear(hidden, self.embed.weight)
        return float32_linear(hidden, self.head.weight, self.head.bias)


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map whose sums are not rounded to the weights' type.

    Rounded logits tie: between 16 and 32 bfloat16 has steps of 1/8. The weight is widened in parts,
    so that no float32 copy of a whole head is made.
    """
    if weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    parts = [F.linear(x.float(), part.float()) for part in weight.split(ROWS_AT_ONCE)]
    out = torch.cat(parts, dim=-1)
    return out if bias is None else out + bias.float()


def projection(source: int, target: int) -> nn.Module:
    """Between token embeddings and hidden states, where their widths differ (OPT-350m)."""
    return nn.Identity() if source == target else nn.Linear(source, target, bias=False)

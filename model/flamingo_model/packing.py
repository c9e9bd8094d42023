"""A loaded model made fast on a CPU: fused and packed linear layers, gates folded into them.

The plain modules are the reference; what stands here computes the same with fewer, larger steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cross_attention import CrossAttend, GatedCrossAttention, GatedFeedForward
from .decoder import Decoder, DecoderLayer, SelfAttend, pre_norm
from .flamingo import Flamingo
from .linears import PackedLinear, pack_linear
from .memory import large_pages
from .native import can_take
from .native.products import ACTIVATIONS, NORMS, Activation, Norm, Product, bend
from .packed_resampler import PackedFeedForward, packed_resampler
from .packed_vision import packed_tower
from .positions import Turn
from .resampler import FeedForward

KINDS = ("float32", "bfloat16", "int8", "int4")
MANY_ROWS = {"int4": "int8"}
"""What parts take that never see few rows, where 4 bits are slow."""
HEADS = {"bfloat16": "widened", "int4": "int8"}
"""What the head takes where a kernel would round the logits themselves: rounded logits tie."""

CACHE_LINE = 64  # bytes


class PackError(Exception):
    """The model cannot be packed so; the message says why."""


@dataclass(frozen=True)
class PackReport:
    """What `pack_model` did; bytes are of the linear layers, embeddings and norms left out."""

    kind: str
    num_packed: int
    num_ours: int  # those that our own kernels run
    bytes_before: int
    bytes_after: int
    many_from: tuple[tuple[str, float], ...]  # layers of two kernels: rows from which the second

    def __str__(self) -> str:
        before, after = self.bytes_before / 2**20, self.bytes_after / 2**20
        whose = "our C kernels" if self.num_ours else "torch's kernels"
        return f"{self.kind}: {self.num_packed} layers, {before:.0f} → {after:.0f} MiB, {whose}"


@torch.no_grad()
def pack_model(model: Flamingo, kind: str) -> PackReport:
    """Packs every `nn.Linear` of a loaded model in place; call it once, after loading.

    Afterwards the model answers under `torch.inference_mode` or `no_grad` only, and has not the
    keys of a checkpoint any more: it cannot be saved, moved or cast. Norms, embeddings and what
    flows between layers keep their type. Layers that are already quantised and models on other
    devices are left alone. Packing again with the same kind does nothing; with another kind, or
    with an unknown one, raises PackError.
    """
    if kind not in KINDS:
        raise PackError(f"kind {kind!r} is not known; known: {KINDS}")
    if not all(weight.device.type == "cpu" for weight in model.parameters()):
        return PackReport(kind, 0, 0, 0, 0, ())
    if packed_kinds(model) - {kind}:
        raise PackError(f"the model is packed as {packed_kinds(model)}, so not as {kind!r}")
    known = set(products(model))
    before = sum(linear.weight.nbytes for linear in plain_linears(model))
    before += model.decoder.embed.weight.nbytes if model.config.decoder.tie_embeddings else 0
    many_rows = MANY_ROWS.get(kind, kind)
    model.vision = packed_tower(model.vision, many_rows)
    pack_linears(model.vision, many_rows)
    model.resampler = packed_resampler(model.resampler, many_rows)
    pack_linears(model.resampler, many_rows)
    pack_blocks(model, kind)
    pack_decoder(model.decoder, kind)
    put_together([product for product in products(model) if product not in known])
    return report(model, kind, before)


def always_one_kernel(model: Flamingo) -> None:
    """From now on no layer's numbers depend on how many rows it is given, nor on measurements."""
    for linear in packed_linears(model):
        linear.many_from = float("inf") if linear.has_two else 0.0


def plain_linears(module: nn.Module) -> Iterator[nn.Linear]:
    """Those not quantised: bitsandbytes' layers are subclasses."""
    return (linear for linear in module.modules() if type(linear) is nn.Linear)


def packed_linears(module: nn.Module) -> Iterator[PackedLinear]:
    return (linear for linear in module.modules() if isinstance(linear, PackedLinear))


def products(module: nn.Module) -> dict[Product, None]:
    """Our kernels in the order in which they run, each once."""
    kernels = [x for linear in packed_linears(module) for x in (linear.few, linear.many)]
    return dict.fromkeys(kernel for kernel in kernels if isinstance(kernel, Product))


def put_together(kernels: Sequence[Product]) -> None:
    """Their weights side by side in large pages, which a single one would not fill."""
    sizes = [-(-kernel.weight.nbytes // CACHE_LINE) * CACHE_LINE for kernel in kernels]
    room = large_pages(sum(sizes))
    for kernel, place in zip(kernels, room.split(sizes), strict=True):
        kernel.move(place[: kernel.weight.nbytes])


def packed_kinds(model: Flamingo) -> set[str]:
    return {linear.kind for linear in packed_linears(model.decoder.layers)}


def report(model: Flamingo, kind: str, bytes_before: int) -> PackReport:
    packed = list(packed_linears(model))
    sizes = {f"{x.in_features} → {x.out_features}": x.many_from for x in packed if x.has_two}
    after = sum(linear.nbytes for linear in packed)
    num_ours = sum(isinstance(linear.few, Product) for linear in packed)
    return PackReport(kind, len(packed), num_ours, bytes_before, after, tuple(sizes.items()))


def pack_linears(module: nn.Module, kind: str) -> None:
    """Every plain linear layer below `module`, each by itself."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, packed(kind, child))
        else:
            pack_linears(child, kind)


def packed(
    kind: str,
    *linears: nn.Module,
    factor: Tensor | float = 1.0,
    norm: Norm | None = None,
) -> PackedLinear:
    """One layer whose outputs stand behind each other; each row of weights times `factor`."""
    plain = [linear for linear in linears if isinstance(linear, nn.Linear)]
    weight, bias = torch.cat([x.weight for x in plain]), joined([x.bias for x in plain])
    if isinstance(factor, Tensor) or factor != 1.0:
        rows = torch.as_tensor(factor, dtype=torch.float32).expand(len(weight))
        weight, bias = weight * rows.unsqueeze(1), None if bias is None else bias * rows
    return pack_linear(weight, bias, kind, norm=norm)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def can_fold(norm: nn.Module | None) -> TypeGuard[Norm]:
    """Whether a product can take the norm before it."""
    return type(norm) in NORMS


def bent(wide: Tensor, activation: Activation, is_gated: bool) -> Tensor:
    """activation(wide), or of gates and what they let through side by side: their product."""
    if can_take(wide) and activation in ACTIVATIONS:
        return bend(wide, activation, is_gated)
    if not is_gated:
        return activation(wide)
    gate, up = wide.chunk(2, dim=-1)
    return activation(gate) * up


def are_plain(*modules: nn.Module) -> bool:
    return all(type(module) is nn.Linear for module in modules)


# The language model


class PackedDecoderLayer(DecoderLayer):
    """q, k and v are one product; gate and up, where there is a gate, are another.

    Where a norm stands before each branch it goes into that product, and the sum behind the branch
    into its last one.
    """

    def __init__(self, layer: DecoderLayer, kind: str) -> None:
        nn.Module.__init__(self)
        self.head_dim, self.is_gated = layer.head_dim, layer.is_gated
        self.activation, self.block = layer.activation, layer.block
        for name in ("attention_norm", "feed_forward_norm", "q_norm", "k_norm"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.is_joined = layer.block is pre_norm and can_fold(layer.attention_norm)
        norms = [getattr(layer, name, None) for name in ("attention_norm", "feed_forward_norm")]
        first, second = norms if self.is_joined else (None, None)
        self.sizes = [linear.out_features for linear in (layer.q, layer.k, layer.v)]
        self.qkv = packed(kind, layer.q, layer.k, layer.v, norm=first)
        self.register_module("out", packed(kind, layer.out).spend_input())
        wide = [layer.gate, layer.up] if layer.is_gated else [layer.up]
        self.widen = packed(kind, *wide, norm=second)
        self.register_module("down", packed(kind, layer.down).spend_input())

    def forward(self, x: Tensor, layer: int, attend: SelfAttend, turn: Turn) -> Tensor:
        if not self.is_joined:
            return super().forward(x, layer, attend, turn)
        x = self.out(self.attended(x, layer, attend, turn), x)
        out: Tensor = self.down(self.widened(x), x)
        return out

    def attention(self, hidden: Tensor, layer: int, attend: SelfAttend, turn: Turn) -> Tensor:
        out: Tensor = self.out(self.attended(hidden, layer, attend, turn))
        return out

    def attended(self, hidden: Tensor, layer: int, attend: SelfAttend, turn: Turn) -> Tensor:
        q, k, v = self.qkv(hidden).split(self.sizes, dim=-1)
        q, k = self.split(self.q_norm(q)), self.split(self.k_norm(k))
        seen = attend(layer, turn(q), turn(k), self.split(v))
        return torch.flatten(seen, -2)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.down(self.widened(hidden))
        return out

    def widened(self, hidden: Tensor) -> Tensor:
        return bent(self.widen(hidden), self.activation, self.is_gated)


def pack_decoder(decoder: Decoder, kind: str) -> None:
    """A decoder by itself, as `pack_model` does it; layers once packed stay as they are."""
    if decoder.packed_head is not None:
        return
    for index, layer in enumerate(decoder.layers):
        if isinstance(layer, DecoderLayer) and are_plain(layer.q, layer.k, layer.v, layer.up):
            decoder.layers[index] = PackedDecoderLayer(layer, kind)
    decoder.project_in = replaced(decoder.project_in, kind)
    decoder.project_out = replaced(decoder.project_out, kind)
    decoder.packed_head = packed_head(decoder, kind)


def replaced(module: nn.Module, kind: str) -> nn.Module:
    return packed(kind, module) if type(module) is nn.Linear else module


def packed_head(decoder: Decoder, kind: str) -> PackedLinear:
    """Logits are float32 and never rounded to less on their way, whatever the kind."""
    tied = decoder.config.tie_embeddings
    weight = decoder.embed.weight if tied else decoder.head.weight
    bias = None if tied else decoder.head.bias
    head = pack_linear(weight, bias, HEADS.get(kind, kind), torch.float32)
    if not tied:
        del decoder.head
    return head


# Cross-attention


class PackedGatedFeedForward(nn.Module):
    """IDEFICS' SwiGLU with gate and up in one product."""

    def __init__(self, plain: GatedFeedForward, kind: str, factor: Tensor | float) -> None:
        super().__init__()
        self.widen = packed(kind, plain.gate, plain.up, norm=plain.norm)
        self.down = packed(kind, plain.down, factor=factor)
        self.activation = F.silu

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        out: Tensor = self.down(bent(self.widen(x), self.activation, is_gated=True), more)
        return out


FEED_FORWARDS: dict[type[nn.Module], type[nn.Module]] = {
    GatedFeedForward: PackedGatedFeedForward,
    FeedForward: PackedFeedForward,
}


class PackedCrossAttention(GatedCrossAttention):
    """A gate's tanh is in the weights before it, a norm in the product behind it."""

    def __init__(self, plain: GatedCrossAttention, kind: str) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.norm_media = plain.num_heads, plain.norm_media
        self.q_norm, self.k_norm = plain.q_norm, plain.k_norm
        norm = plain.norm if can_fold(plain.norm) else None
        self.norm = plain.norm if norm is None else nn.Identity()
        first, second = opened(plain.attention_gate), opened(plain.feed_forward_gate)
        q = packed(kind, plain.to_q, norm=norm)
        self.register_module("to_q", q)
        self.register_module("to_kv", packed(MANY_ROWS.get(kind, kind), plain.to_kv))
        self.register_module("to_out", packed(kind, plain.to_out, factor=first))
        if (wide := plain.feed_forward) is not None:
            self.feed_forward = FEED_FORWARDS[type(wide)](wide, kind, second)
        else:
            self.feed_forward = None

    def forward(self, hidden: Tensor, block: int, attend: CrossAttend) -> Tensor:
        seen = attend(block, self.queries(self.norm(hidden)))  # [..., heads, head_dim]
        hidden = self.to_out(seen.flatten(-2), hidden)
        if self.feed_forward is None:
            return hidden
        out: Tensor = self.feed_forward(hidden, hidden)
        return out


def pack_blocks(model: Flamingo, kind: str) -> None:
    """Those that are plain: a block whose layers are quantised stays as it is."""
    for index, block in enumerate(model.cross_attention):
        if isinstance(block, GatedCrossAttention) and are_plain(block.to_q, block.to_out):
            model.cross_attention[index] = PackedCrossAttention(block, kind)


def opened(gate: Tensor | None) -> Tensor | float:
    return 1.0 if gate is None else gate.float().tanh()

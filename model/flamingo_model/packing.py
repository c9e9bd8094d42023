"""A loaded model made fast on a CPU: fused and packed linear layers, gates folded into them.

The plain modules are the reference; what stands here computes the same with fewer, larger steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cross_attention import GatedCrossAttention, GatedFeedForward
from .decoder import Decoder, DecoderLayer, SelfAttend
from .flamingo import Flamingo
from .linears import PackedLinear, pack_linear
from .packed_resampler import packed_resampler
from .packed_vision import packed_tower
from .positions import Turn
from .resampler import FeedForward

KINDS = ("float32", "bfloat16", "int8", "int4")
MANY_ROWS = {"int4": "int8"}
"""What parts take that never see few rows, where 4 bits are slow."""
HEADS = {"bfloat16": "widened", "int4": "int8"}
"""What the head takes where a kernel would round the logits themselves: rounded logits tie."""


class PackError(Exception):
    """The model cannot be packed so; the message says why."""


@dataclass(frozen=True)
class PackReport:
    """What `pack_model` did; bytes are of the linear layers, embeddings and norms left out."""

    kind: str
    num_packed: int
    bytes_before: int
    bytes_after: int
    many_from: tuple[tuple[str, float], ...]  # layers of two kernels: rows from which the second

    def __str__(self) -> str:
        before, after = self.bytes_before / 2**20, self.bytes_after / 2**20
        return f"{self.kind}: {self.num_packed} layers, {before:.0f} → {after:.0f} MiB"


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
        return PackReport(kind, 0, 0, 0, ())
    if packed_kinds(model) - {kind}:
        raise PackError(f"the model is packed as {packed_kinds(model)}, so not as {kind!r}")
    before = sum(linear.weight.nbytes for linear in plain_linears(model))
    before += model.decoder.embed.weight.nbytes if model.config.decoder.tie_embeddings else 0
    many_rows = MANY_ROWS.get(kind, kind)
    model.vision = packed_tower(model.vision, many_rows)
    pack_linears(model.vision, many_rows)
    model.resampler = packed_resampler(model.resampler, many_rows)
    pack_linears(model.resampler, many_rows)
    for block in model.blocks():
        pack_block(block, kind)
    pack_decoder(model.decoder, kind)
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


def packed_kinds(model: Flamingo) -> set[str]:
    return {linear.kind for linear in packed_linears(model.decoder.layers)}


def report(model: Flamingo, kind: str, bytes_before: int) -> PackReport:
    packed = list(packed_linears(model))
    sizes = {f"{x.in_features} → {x.out_features}": x.many_from for x in packed if x.has_two}
    after = sum(linear.nbytes for linear in packed)
    return PackReport(kind, len(packed), bytes_before, after, tuple(sizes.items()))


def pack_linears(module: nn.Module, kind: str) -> None:
    """Every plain linear layer below `module`, each by itself."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, packed(kind, child))
        else:
            pack_linears(child, kind)


def packed(kind: str, *linears: nn.Module, factor: Tensor | float = 1.0) -> PackedLinear:
    """One layer whose outputs stand behind each other; each row of weights times `factor`."""
    plain = [linear for linear in linears if isinstance(linear, nn.Linear)]
    weight, bias = torch.cat([x.weight for x in plain]), joined([x.bias for x in plain])
    if isinstance(factor, Tensor) or factor != 1.0:
        rows = torch.as_tensor(factor, dtype=torch.float32).expand(len(weight))
        weight, bias = weight * rows.unsqueeze(1), None if bias is None else bias * rows
    return pack_linear(weight, bias, kind)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def are_plain(*modules: nn.Module) -> bool:
    return all(type(module) is nn.Linear for module in modules)


# The language model


class PackedDecoderLayer(DecoderLayer):
    """q, k and v are one product; gate and up, where there is a gate, are another."""

    def __init__(self, layer: DecoderLayer, kind: str) -> None:
        nn.Module.__init__(self)
        self.head_dim, self.is_gated = layer.head_dim, layer.is_gated
        self.activation, self.block = layer.activation, layer.block
        for name in ("attention_norm", "feed_forward_norm", "q_norm", "k_norm"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))
        self.sizes = [linear.out_features for linear in (layer.q, layer.k, layer.v)]
        self.qkv = packed(kind, layer.q, layer.k, layer.v)
        self.register_module("out", packed(kind, layer.out).spend_input())
        self.widen = packed(kind, *([layer.gate] if layer.is_gated else []), layer.up)
        self.register_module("down", packed(kind, layer.down).spend_input())

    def attention(self, hidden: Tensor, layer: int, attend: SelfAttend, turn: Turn) -> Tensor:
        q, k, v = self.qkv(hidden).split(self.sizes, dim=-1)
        q, k = self.split(self.q_norm(q)), self.split(self.k_norm(k))
        out: Tensor = self.out(attend(layer, turn(q), turn(k), self.split(v)).flatten(-2))
        return out

    def feed_forward(self, hidden: Tensor) -> Tensor:
        wide = self.widen(hidden)
        if self.is_gated:
            gate, up = wide.chunk(2, dim=-1)
            wide = self.activation(gate) * up
        else:
            wide = self.activation(wide)
        out: Tensor = self.down(wide)
        return out


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
        self.norm = plain.norm
        self.widen = packed(kind, plain.gate, plain.up)
        self.down = packed(kind, plain.down, factor=factor)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.widen(self.norm(x)).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate).mul_(up))
        return out


def pack_block(block: GatedCrossAttention, kind: str) -> None:
    """In place; a gate's tanh goes into the weights before it, and the gate is gone."""
    if not are_plain(block.to_q, block.to_out):
        return
    first, second = opened(block.attention_gate), opened(block.feed_forward_gate)
    block.attention_gate = block.feed_forward_gate = None
    block.register_module("to_q", packed(kind, block.to_q))
    block.register_module("to_kv", packed(MANY_ROWS.get(kind, kind), block.to_kv))
    block.register_module("to_out", packed(kind, block.to_out, factor=first))
    if isinstance(block.feed_forward, GatedFeedForward):
        block.feed_forward = PackedGatedFeedForward(block.feed_forward, kind, second)
    elif isinstance(block.feed_forward, FeedForward):
        block.feed_forward.register_module("up", packed(kind, block.feed_forward.up))
        block.feed_forward.register_module(
            "down", packed(kind, block.feed_forward.down, factor=second)
        )


def opened(gate: Tensor | None) -> Tensor | float:
    return 1.0 if gate is None else gate.float().tanh()

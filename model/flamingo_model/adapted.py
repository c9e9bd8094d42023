"""Adapters beside each other: the language model's weights are read once, for all rows of a batch.

A view is the base model with an adapter's own parts in place of the base's; what the adapter leaves
alone is the base's very module. A step over rows of several views runs the base's layers once, each
view's cross-attention and embeddings on its own rows, and adds low-rank updates to its rows alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .adapters import Adapter, AdapterError, Update, changed_tensor
from .checkpoints.hollow import hollow
from .checkpoints.weights import SHOWN, Weights
from .config import FlamingoConfig
from .cross_attention import CrossAttend, build_cross_attention
from .decoder import Decoder, SelfAttend
from .flamingo import Flamingo, before_layers
from .linears import PackedLinear
from .packing import pack_model, packed_head
from .resampler import build_resampler
from .vision import build_vision

M = TypeVar("M", bound=nn.Module)
BUILDERS: dict[str, Callable[[FlamingoConfig], nn.Module]] = {
    "vision": lambda c: build_vision(c.vision),
    "resampler": lambda c: build_resampler(c.resampler, c.vision),
    "cross_attention": lambda c: build_cross_attention(
        c.decoder.dim, c.resampler.dim, c.cross_attention
    ),
}
JOINT = {"qkv": ("q", "k", "v"), "widen": ("gate", "up")}
"""Products of a packed layer that stand for several linear layers of a checkpoint's."""
LayerUpdates = Mapping[str, Update]
"""By the layer's child whose output they are added to."""


@dataclass(frozen=True, eq=False)
class Adapted:
    """A base model as one adapter has it.

    `model` runs rows of this adapter alone, and its pictures; `updates` are those of the decoder's
    layers, which a step over several adapters adds. `digest` names what it computes. With
    `has_own_pictures` the keys and values of a picture are not the base's.
    """

    model: Flamingo
    updates: Mapping[int, LayerUpdates]
    digest: str
    has_own_pictures: bool


@torch.no_grad()
def adapt(base: Flamingo, weights: Weights, adapter: Adapter, kernels: str | None) -> Adapted:
    """A view of `base`, which stays as it is. The adapter has passed `check_base`.

    `weights` are the base's as they are stored: those of a packed model are nowhere else. `kernels`
    is the kind the base is packed with; the adapter's parts are then packed the same way. Low-rank
    updates of the decoder's layers are never rounded, and stand beside quantised weights.
    """
    like = base.decoder.embed.weight

    def new(name: str) -> Tensor:
        tensor = changed_tensor(adapter, name, weights.__getitem__)
        return tensor.to(device=like.device, dtype=like.dtype, copy=True)

    view, config = shallow(base), base.config
    changed = {part_of(name) for name in adapter.changed}
    blocks = list[nn.Module]()
    for index, block in enumerate(base.cross_attention):
        path = f"cross_attention.{index}"
        blocks.append(part(path, config, new) if path in changed else block)
    view.cross_attention = nn.ModuleList(blocks)
    if "vision" in changed:
        view.register_module("vision", part("vision", config, new))
    if "resampler" in changed:
        view.register_module("resampler", part("resampler", config, new))
    updates = layer_updates(base.decoder, adapter, weights.layout)
    view.decoder = shallow(base.decoder)
    view.decoder.layers = updated_layers(base.decoder, [(None, updates)])
    replace_embeddings(view.decoder, changed, new, kernels)
    if kernels is not None:
        pack_model(view, kernels)
    pictures = {"vision", "resampler", *(f"cross_attention.{i}" for i in range(len(blocks)))}
    return Adapted(view, updates, adapter.digest, bool(changed & pictures))


def shallow(module: M) -> M:
    """Another with the same children and parameters, which may be given others."""
    other = copy.copy(module)
    for name in ("_modules", "_parameters", "_buffers"):
        other.__dict__[name] = dict(module.__dict__[name])
    return other


def part_of(name: str) -> str:
    """ "cross_attention.2.to_q.weight" → "cross_attention.2", "resampler.latents" → "resampler" """
    top, second, *_ = name.split(".")
    return f"{top}.{second}" if top in ("cross_attention", "decoder") else top


def part(path: str, config: FlamingoConfig, new: Callable[[str], Tensor]) -> nn.Module:
    """A part of the model with the adapter's tensors, and the base's for the rest."""
    with hollow():
        module = BUILDERS[path.partition(".")[0]](config)
    state = {name: new(f"{path}.{name}") for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    device = next(iter(state.values())).device
    return module.to(device).eval().requires_grad_(False)


def replace_embeddings(
    decoder: Decoder, changed: set[str], new: Callable[[str], Tensor], kernels: str | None
) -> None:
    """Of a view; where they are tied the head follows."""
    config, has_head = decoder.config, not decoder.config.tie_embeddings
    if "decoder.embed" in changed:
        decoder.embed = nn.Embedding.from_pretrained(new("decoder.embed.weight"))
    if has_head and "decoder.head" in changed:
        head = nn.Linear(config.token_dim, config.vocab_size, config.head_bias, device="meta")
        state = {name: new(f"decoder.head.{name}") for name in head.state_dict()}
        head.load_state_dict(state, assign=True)
        decoder.head = head.requires_grad_(False)
    has_new = "decoder.head" in changed if has_head else "decoder.embed" in changed
    if has_new and decoder.packed_head is not None:
        assert kernels is not None
        decoder.packed_head = packed_head(decoder, kernels)


# ---- low-rank updates of the decoder's layers


def layer_updates(
    decoder: Decoder, adapter: Adapter, layout: Mapping[str, Tensor]
) -> dict[int, LayerUpdates]:
    """For the children that the layers have, packed or not. Raises AdapterError for a layer that
    computes otherwise, where an update would be lost.
    """
    device, found = decoder.embed.weight.device, dict[int, LayerUpdates]()
    left = {name for name in adapter.updates if name.startswith("decoder.layers.")}
    for index, layer in enumerate(decoder.layers):
        place, known = f"decoder.layers.{index}", dict[str, Update]()
        for child, _ in layer.named_children():
            names = [f"{place}.{name}.weight" for name in JOINT.get(child, (child,))]
            names = [name for name in names if name in layout]
            left.difference_update(names)
            if any(name in adapter.updates for name in names):
                pieces = [(adapter.updates.get(name), len(layout[name])) for name in names]
                joint = joined(pieces)
                known[child] = Update(joint.down.to(device), joint.up.to(device))
        if known:
            found[index] = known
    if left:
        message = f"{adapter.where}: no layer takes the updates of {sorted(left)[:SHOWN]}"
        raise AdapterError(message)
    return found


def joined(pieces: Sequence[tuple[Update | None, int]]) -> Update:
    """Of linear layers with so many outputs each, which stand behind each other as one."""
    known = [update for update, _ in pieces if update is not None]
    down = torch.cat([update.down for update in known])  # [r, in]
    up = torch.zeros(sum(size for _, size in pieces), len(down))
    row = column = 0
    for update, size in pieces:
        if update is not None:
            rank = len(update.down)
            up[row : row + size, column : column + rank] = update.up
            column += rank
        row += size
    return Update(down, up)


class Updated(nn.Module):
    """A product with updates added, each to some rows of a flat batch [N, in], or to all.

    Its sums are float32 whatever the model's type, as those of a fused weight.
    """

    def __init__(self, product: nn.Module, updates: Sequence[tuple[Tensor | None, Update]]) -> None:
        super().__init__()
        self.product, self.updates = product, updates

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        seen = self.product.around.normed(x) if isinstance(self.product, PackedLinear) else x
        # First, for a packed product may use its input up.
        added = [
            (rows, update(seen if rows is None else seen[rows])) for rows, update in self.updates
        ]
        out: Tensor = self.product(x, *more)
        for rows, some in added:
            some = some.to(out.dtype)
            out = out + some if rows is None else out.index_add(0, rows, some)
        return out


def updated_layers(
    decoder: Decoder, groups: Sequence[tuple[Tensor | None, Mapping[int, LayerUpdates]]]
) -> nn.ModuleList:
    """The decoder's layers for one step: those that nothing changes are its own."""
    layers = list(decoder.layers)
    for index in {index for _, updates in groups for index in updates}:
        layers[index] = layer = shallow(layers[index])
        theirs = [(rows, updates.get(index, {})) for rows, updates in groups]
        for child in {child for _, updates in theirs for child in updates}:
            added = [(rows, updates[child]) for rows, updates in theirs if child in updates]
            layer.register_module(child, Updated(layer.get_submodule(child), added))
    return nn.ModuleList(layers)


# ---- a step over rows of several adapters


@dataclass(frozen=True)
class Rows:
    """Rows [n] of a flat batch of one adapter, or of the base; `attend` is for them alone."""

    adapted: Adapted | None
    rows: Tensor
    attend: CrossAttend

    def model(self, base: Flamingo) -> Flamingo:
        return base if self.adapted is None else self.adapted.model


def forward_side_by_side(
    base: Flamingo,
    groups: Sequence[Rows],
    token_ids: Tensor,
    positions: Tensor,
    self_attend: SelfAttend,
) -> Tensor:
    """Tokens and positions [N] → hidden states [N, dim], as `Flamingo.forward` of each view.

    Every row is in exactly one group.
    """
    blocks = [group.model(base).blocks() for group in groups]

    def look(index: int, hidden: Tensor) -> Tensor:
        out = torch.empty_like(hidden)
        for group, own in zip(groups, blocks, strict=True):
            out[group.rows] = own[index](hidden[group.rows], index, group.attend)
        return out

    decoder = shallow(base.decoder)
    updates = [(group.rows, group.adapted.updates) for group in groups if group.adapted]
    decoder.layers = updated_layers(base.decoder, updates)
    embeds = [(group.rows, group.model(base).decoder.embed) for group in groups]
    if any(embed is not base.decoder.embed for _, embed in embeds):
        decoder.register_module("embed", ByRows(embeds))
    out: Tensor = decoder(token_ids, positions, self_attend, before_layers(base.config, look))
    return out


class ByRows(nn.Module):
    """Each row [N] through a module of its own."""

    def __init__(self, modules: Sequence[tuple[Tensor, nn.Module]]) -> None:
        super().__init__()
        self.modules_of_rows = tuple(modules)

    def forward(self, x: Tensor) -> Tensor:
        found = [(rows, module(x[rows])) for rows, module in self.modules_of_rows]
        out: Tensor = found[0][1].new_empty(len(x), *found[0][1].shape[1:])
        for rows, some in found:
            out[rows] = some
        return out


def logits_side_by_side(base: Flamingo, models: Sequence[Flamingo], hidden: Tensor) -> Tensor:
    """Hidden states [n, dim], each of the base or a view, → logits [n, vocab].

    Views with the base's head share one product with it.
    """
    of_head = dict[int, list[int]]()
    for row, model in enumerate(models):
        of_head.setdefault(id(head(model.decoder)), []).append(row)
    if of_head.keys() <= {id(head(base.decoder))}:
        return base.logits(hidden)
    out = hidden.new_empty(len(hidden), base.config.decoder.vocab_size, dtype=torch.float32)
    for rows in of_head.values():
        out[rows] = models[rows[0]].logits(hidden[rows])
    return out


def head(decoder: Decoder) -> nn.Module:
    if decoder.packed_head is not None:
        return decoder.packed_head
    return decoder.embed if decoder.config.tie_embeddings else decoder.head

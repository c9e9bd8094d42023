"""An adapter: what training changed of a model, in one file that says which model that was.

The file is safetensors. Whole tensors have the model's own names and take the place of its own;
`<weight without .weight>.lora_A` [r, in] and `.lora_B` [out, r] make a linear layer's weight
W + (alpha / r) · B A (Hu et al. 2021, arXiv 2106.09685, section 4.1). The card is JSON in the
file's metadata. `adapted` runs several adapters side by side; here one is read, written and fused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .checkpoints.weights import SHOWN, CheckpointError, Weights, complain
from .checkpoints.writing import StateDict
from .linears import PackedLinear

FORMAT = "flamingo-adapter-1"
REPLACED = ("vision.", "resampler.", "cross_attention.", "decoder.embed.", "decoder.head.")
"""What whole tensors may replace; the language model's layers take low-rank updates alone."""
DOWN, UP = ".lora_A", ".lora_B"
DEEPEST = 16  # objects within objects of a card
AT_ONCE = 2**22  # numbers that are widened to float32 together


class AdapterError(CheckpointError):
    """Not a whole, sound adapter of this model; the message says why, in one line."""


@dataclass(frozen=True)
class AdapterCard:
    """`base_digest` is `base_digest` of the model it was trained on; the rest is for people.

    `config` is how it was trained, `data` on what, `metrics` what it reached: plain JSON.
    """

    base_digest: str
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    lora_alpha: float | None = None

    @classmethod
    def from_json(cls, text: str) -> AdapterCard:
        """Raises ValueError for what is no card; numbers that JSON has not are None."""
        values = json.loads(text, parse_constant=lambda name: None, parse_float=finite)
        json.dumps(values, ensure_ascii=False).encode()  # half characters could not be sent on
        if depth(values) > DEEPEST:
            raise ValueError("its card is nested too deeply")
        if not isinstance(values, dict) or not isinstance(values.get("base_digest"), str):
            raise ValueError("its card names no base model")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"its card has unknown keys {unknown[:SHOWN]}; known: {sorted(known)}")
        for name, kind in KINDS.items():
            if name in values and not isinstance(values[name], kind):
                raise ValueError(f"its card's {name} is {values[name]!r:.80}")
        return cls(**values)


def finite(text: str) -> float | None:
    return number if math.isfinite(number := float(text)) else None


def depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0)


KINDS: dict[str, Any] = {
    "name": str,
    **dict.fromkeys(("config", "data", "metrics"), dict),
    "lora_rank": int | None,
    "lora_alpha": int | float | None,
}


@dataclass(frozen=True)
class Update:
    """A low-rank change of a weight [out, in]: down [r, in], up [out, r] with alpha / r in it."""

    down: Tensor
    up: Tensor

    def delta(self) -> Tensor:
        return self.up @ self.down

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] of any type → what it adds, [..., out] in its own"""
        return F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)


@dataclass(frozen=True, eq=False)
class Adapter:
    """`where` names it in messages."""

    card: AdapterCard
    tensors: Mapping[str, Tensor]
    where: str = "the adapter"

    @cached_property
    def replaced(self) -> dict[str, Tensor]:
        """Whole tensors by the name of the model's own."""
        return {k: v for k, v in self.tensors.items() if not k.endswith((DOWN, UP))}

    @cached_property
    def updates(self) -> dict[str, Update]:
        """Low-rank updates, in float32, by the name of the weight that they change."""
        alpha, found = self.card.lora_alpha, {}
        for name, down in self.tensors.items():
            if name.endswith(DOWN):
                assert alpha is not None  # checked by `check_whole`
                module = name.removesuffix(DOWN)
                up = self.tensors[module + UP].float() * (alpha / len(down))
                found[f"{module}.weight"] = Update(down.float(), up)
        return found

    @property
    def changed(self) -> set[str]:
        """The model's tensors that it changes."""
        return self.replaced.keys() | self.updates.keys()

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """Names what it computes: its tensors and their scale."""
        return tensors_digest(self.tensors, self.tensors.__getitem__, str(self.card.lora_alpha))


# ---- the file


def save_adapter(path: Path | str, tensors: Mapping[str, Tensor], card: AdapterCard) -> None:
    """Writes all of it or nothing. Raises AdapterError for tensors that no model could take."""
    path = Path(path)
    check_whole(Adapter(card, tensors, str(path)))
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(whole, part, {"format": FORMAT, "card": json.dumps(asdict(card), default=str)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)  # safetensors leaves it to its owner alone; servers often run as another
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_adapter(path: Path | str, where: str | None = None) -> Adapter:
    """Copies, so that the file may be replaced. `where` names it in messages, not its whole path.

    Raises AdapterError for no file, for a damaged one, and for NaN in it.
    """
    where = where or str(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise AdapterError(f"{where} is no adapter: its metadata lacks {FORMAT!r}")
            card = AdapterCard.from_json(metadata.get("card", "null"))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except FileNotFoundError as error:
        raise AdapterError(f"{where}: there is no such file") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, RecursionError) as error:
        raise AdapterError(f"{where} is not a whole adapter: {said(error)}") from error
    adapter = Adapter(card, tensors, where)
    check_whole(adapter)
    return adapter


def said(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def check_whole(adapter: Adapter) -> None:
    """Raises AdapterError for what is wrong whatever the model."""
    where, tensors = adapter.where, adapter.tensors
    if not tensors:
        raise AdapterError(f"{where} changes nothing")
    sides = [{k.removesuffix(end) for k in tensors if k.endswith(end)} for end in (DOWN, UP)]
    pairs = {name: (tensors[name + DOWN], tensors[name + UP]) for name in sides[0] & sides[1]}
    odd = {name for name, (down, up) in pairs.items() if not is_pair(down, up)}
    rank, alpha = adapter.card.lora_rank, adapter.card.lora_alpha
    other = {n for n, (down, _) in pairs.items() if rank is not None and len(down) != rank}
    refuse(
        where,
        {
            "not floating-point": {n for n, t in tensors.items() if not t.is_floating_point()},
            "lora_A without lora_B": sides[0] - sides[1],
            "lora_B without lora_A": sides[1] - sides[0],
            "lora_A and lora_B of different ranks": odd,
            f"low-rank updates whose rank is not the card's {rank}": other - odd,
            "updates without lora_alpha in the card": set(pairs) if alpha is None else (),
        },
        "the format of adapters",
    )
    if alpha is not None and not math.isfinite(alpha):
        raise AdapterError(f"{where}: lora_alpha is {alpha}")
    if spoilt := sorted(n for n, t in tensors.items() if not t.isfinite().all()):
        raise AdapterError(f"{where} holds NaN or infinity: {spoilt[:SHOWN]}")


def is_pair(down: Tensor, up: Tensor) -> bool:
    return down.dim() == up.dim() == 2 and 0 < len(down) == up.shape[1]


def refuse(where: str, problems: Mapping[str, Any], what: str) -> None:
    try:
        complain(where, {sort: set(names) for sort, names in problems.items()}, what)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None


# ---- the model it belongs to


def base_digest(base: nn.Module | Weights) -> str:
    """SHA-256 over names, shapes and numbers, these as float32: those of a checkpoint as stored.

    So a model served in bfloat16, in 8 bits or packed is recognised by the `Weights` it was opened
    from. A module must hold them unrounded: in float32, or in the type they were stored in, before
    training. Raises AdapterError for one that is packed or quantised.
    """
    if isinstance(base, nn.Module):
        if any(isinstance(module, PackedLinear) for module in base.modules()):
            raise AdapterError("a packed model has no digest: take that of its checkpoint")
        base = StateDict(base)
    if not all(tensor.is_floating_point() for tensor in base.layout.values()):
        raise AdapterError("a quantised model has no digest: take that of its checkpoint")
    return tensors_digest(base.layout, base.__getitem__)


def tensors_digest(
    layout: Mapping[str, Tensor], read: Callable[[str], Tensor], more: str = ""
) -> str:
    found = hashlib.sha256(more.encode())
    for name in sorted(layout):
        tensor = read(name).detach()
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        for part in tensor.reshape(-1).split(AT_ONCE):
            found.update(part.float().cpu().contiguous().numpy().data)
    return found.hexdigest()


def check_base(adapter: Adapter, layout: Mapping[str, Tensor], digest: str) -> None:
    """Raises AdapterError unless it was made for the model of this digest, and fits it.

    `layout` has the model's tensors by name; their shapes are looked at.
    """
    if adapter.card.base_digest != digest:
        raise AdapterError(
            f"{adapter.where} was made for another base model: its card has the digest "
            f"{adapter.card.base_digest[:12]}, this model {digest[:12]}"
        )
    known = {n for n in adapter.changed if n in layout}
    updates = {n: [len(u.up), u.down.shape[1]] for n, u in adapter.updates.items()}
    shapes = {**{n: list(t.shape) for n, t in adapter.replaced.items()}, **updates}
    fixed = {n for n in adapter.replaced.keys() & known if not n.startswith(REPLACED)}
    refuse(
        adapter.where,
        {
            "unknown": adapter.changed - known,
            "both replaced and updated": adapter.replaced.keys() & updates.keys(),
            "updated, and no linear layer": {n for n in updates.keys() & known if not linear(n)},
            "replaced, where only low-rank updates may change anything": fixed,
            "wrongly shaped": {
                f"{n} {shapes[n]} for {list(layout[n].shape)}"
                for n in known
                if shapes[n] != list(layout[n].shape)
            },
        },
        "the base model",
    )


def linear(name: str) -> bool:
    """Whether an update may stand there: in a layer, or in what may be replaced as a whole."""
    return name.startswith(("decoder.layers.", *REPLACED)) and name != "decoder.embed.weight"


def changed_tensor(adapter: Adapter, name: str, own: Callable[[str], Tensor]) -> Tensor:
    """The tensor that the model has with the adapter; `own` gives the model's."""
    if name in adapter.replaced:
        return adapter.replaced[name]
    tensor = own(name)
    if name not in adapter.updates:
        return tensor
    delta = adapter.updates[name].delta().to(tensor.device)
    return (tensor.float() + delta).to(tensor.dtype)


# ---- one adapter baked into a model


@dataclass(frozen=True, eq=False)
class Fused:
    """A model that computes as with an adapter; `originals` are what stood there before."""

    model: nn.Module
    originals: Mapping[str, Tensor]


@torch.no_grad()
def fuse(model: nn.Module, adapter: Adapter, digest: str | None = None) -> Fused:
    """Bakes the adapter in, in place; `unfuse` puts the very tensors back that were there.

    The model must be neither packed nor quantised. `digest` is its `base_digest`, computed here if
    not given. Raises AdapterError, with nothing changed, for an adapter that does not fit.
    """
    own = model.state_dict(keep_vars=True)
    check_base(adapter, own, base_digest(model) if digest is None else digest)
    new = {
        name: changed_tensor(adapter, name, own.__getitem__).to(own[name]).clone()
        for name in adapter.changed
    }
    for name, tensor in new.items():
        is_parameter = isinstance(own[name], nn.Parameter)
        put(model, name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
    return Fused(model, {name: own[name] for name in new})


def unfuse(fused: Fused) -> None:
    """The model's weights are bit for bit what they were."""
    for name, tensor in fused.originals.items():
        put(fused.model, name, tensor)


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)

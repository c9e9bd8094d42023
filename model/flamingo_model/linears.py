"""Linear layers for a CPU, their weights kept in the layout that the fastest kernel reads: our own
where they were compiled and the CPU can run them (`native`), torch's elsewhere.

A kind says how weights are kept, and has a kernel for few rows (decoding, where reading weights is
the cost) and perhaps one for many (prefill, pictures, where arithmetic is). From how many rows the
second is the faster is measured here, once for each shape; what a CPU lacks, its flags say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native
from .native.products import (
    GROUP,
    NORMS,
    SHIFT,
    Activation,
    Around,
    Norm,
    Product,
    eight_bit_product,
    float_product,
    four_bit_product,
)

EIGHT = 127  # the largest of symmetric 8-bit values
WHOLE = 2.0**23  # from here on a float32 is a whole number, and its lowest byte that of the number
FOUR = 15
FEW = 8  # rows
PART = 1024  # rows of a weight that are widened at once: float32 copies that stay in the cache
TRIED = (1, 4, 16, 64, 256)  # numbers of rows
TRIED_FROM = {"int4": 16}
"""For fewer rows reading is the cost, and half the bytes win; what is measured lies in a cache."""
REPEATS = 5


class Kernel(Protocol):
    """One way to multiply by one weight."""

    nbytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """[M, in] of any float type → [M, out]"""


class Plain:
    """Torch's own, in the weight's type: float32 is at memory bandwidth, and at MKL's peak."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Widened:
    """Float32 sums of a smaller weight, widened part by part: never a copy of the whole.

    Without AMX the arithmetic of bfloat16 is slower than float32's.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, None if bias is None else bias.float()
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        x, out = x.float(), x.new_empty(len(x), len(self.weight), dtype=torch.float32)
        for part, place in zip(self.weight.split(PART), out.split(PART, dim=1), strict=True):
            torch.mm(x, part.float().T, out=place)
        return out if self.bias is None else out.add_(self.bias)


class EightBit:
    """8-bit weights, a scale for each output; activations rounded to 8 bits, each row by itself.

    Its sums are whole numbers, so a row's answer does not depend on the rows beside it. With
    `spends_input` what it is given may be written over: nobody reads it afterwards.
    """

    spends_input = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rounded, scales = eight_bits(weight)
        self.scales, self.shift_back = scales, rounded.sum(1) * scales * -SHIFT
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.bias = None if bias is None else bias.float()
        self.nbytes = rounded.nbytes + 3 * self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        unsigned, steps = self.rounded(x)
        out: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            *(unsigned, 1.0, 0, self.weight, self.scales, self.zeros, self.shift_back),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        if self.bias is None:
            return out.mul_(steps)
        torch.addcmul(self.bias, out, steps, out=out)
        return out

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [M, in] around `SHIFT`, and what a step of each row is worth [M, 1].

        Few passes over memory, most of them in place: with many rows they take as long as the sums.
        """
        wide = x.float()
        steps = tops(wide).mul_(1 / EIGHT).clamp_(min=1e-30)  # NaN stays
        place = wide if self.spends_input or wide is not x else None
        sized = torch.mul(wide, steps.reciprocal(), out=place).add_(WHOLE + SHIFT)
        return sized.view(torch.int32).to(torch.uint8), steps


def tops(x: Tensor) -> Tensor:
    """The largest size in each row [M, 1]; torch's quickest way depends on their number."""
    if x.shape[0] < FEW:
        norms: Tensor = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
        return norms
    return torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())


class EightBitWeights:
    """Only the weights are rounded; for CPUs without 8-bit products (VNNI)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, scales = eight_bits(weight)
        self.scales, self.bias = scales.bfloat16(), None if bias is None else bias.float()
        self.nbytes = self.weight.nbytes + self.scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.bfloat16)  # of float32 torch has no fast one
        return added(torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scales), self.bias)


class FourBit:
    """4-bit weights with a scale and an offset for every `GROUP` of a row; bfloat16 activations."""

    def __init__(self, rounded: Tensor, scales: Tensor, lowest: Tensor, bias: Tensor | None):
        """Of `four_bits`."""
        middle = lowest + (FOUR + 1) // 2 * scales
        pairs = torch.stack([scales, middle], dim=-1).transpose(0, 1)  # [groups, out, 2]
        self.pairs = pairs.contiguous().bfloat16()
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(rounded, 1)
        self.bias = None if bias is None else bias.float()
        self.nbytes = self.weight.nbytes + self.pairs.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu.default(
            x, self.weight, GROUP, self.pairs
        )
        return added(product, self.bias)


def added(product: Tensor, bias: Tensor | None) -> Tensor:
    """With a float32 bias the sum is float32."""
    return product if bias is None else bias + product


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] → int8 and scales [out], symmetric"""
    scales = weight.float().abs().amax(1).clamp(min=1e-12) / EIGHT
    return (weight.float() / scales.unsqueeze(1)).round().to(torch.int8), scales


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] → 0 … 15 as int32, and scales and lowest values [out, in / GROUP]"""
    groups = weight.float().unflatten(1, (-1, GROUP))
    lowest, highest = groups.aminmax(dim=-1)
    scales = ((highest - lowest) / FOUR).clamp(min=1e-12)
    rounded = ((groups - lowest.unsqueeze(-1)) / scales.unsqueeze(-1)).round()
    return rounded.clamp(0, FOUR).flatten(1).to(torch.int32), scales, lowest


class PackedLinear(nn.Module):
    """Stands where an `nn.Linear` was, and what was beside it: activation(norm(x) · W + b) + more.

    It answers in the type of its input, or in `dtype`. Its weights are in no `state_dict`: a packed
    model is neither saved, nor moved, nor copied, nor trained.
    """

    def __init__(
        self, kind: str, weight: Tensor, around: Around, dtype: torch.dtype | None = None
    ) -> None:
        """Of a weight [out, in]."""
        super().__init__()
        self.kind, self.dtype, self.around = kind, dtype, around
        self.out_features, self.in_features = weight.shape
        kernels = KERNELS[kind](weight, around)
        self.few, self.many, self.has_two = kernels[0], kernels[-1], len(kernels) > 1
        self.many_from = 0.0
        if self.has_two:
            self.many_from = measured(kind, (self.in_features, self.out_features), *kernels)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        kernel, dtype = self.kernel(x.numel() // self.in_features), self.dtype or x.dtype
        if isinstance(kernel, Product) and (more is None or more.dtype == torch.float32):
            return kernel(x, more).to(dtype)
        out = kernel(x.reshape(-1, self.in_features)).to(dtype)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if more is None else out.add_(more)

    def kernel(self, rows: int) -> Kernel:
        """The one that so many rows are multiplied by."""
        return self.few if self.has_two and rows < self.many_from else self.many

    __call__ = forward  # no hooks: a step calls it a hundred times, and each would take longer

    def spend_input(self) -> PackedLinear:
        """From now on what it is given may be written over: for what nobody else reads."""
        for kernel in (self.few, self.many):
            if isinstance(torchs := inner(kernel), EightBit):
                torchs.spends_input = True
        return self

    @property
    def nbytes(self) -> int:
        """What its weights take; both kernels may read the same ones."""
        few, many = inner(self.few), inner(self.many)
        shared = getattr(few, "weight", None) is getattr(many, "weight", None)
        return few.nbytes if shared else few.nbytes + many.nbytes


Kernels = tuple[Kernel, ...]


def float32(weight: Tensor, around: Around) -> Kernels:
    if native.is_available():
        return (float_product(weight, around),)
    return (surrounded(Plain(weight.float(), as_float32(around.bias)), around),)


def bfloat16(weight: Tensor, around: Around) -> Kernels:
    """Torch's where a CPU multiplies whole tiles (AMX): its arithmetic is then the faster."""
    if native.is_available() and not has_tiles("amx_bf16"):
        return (float_product(weight.bfloat16(), around),)
    weight, bias = weight.bfloat16(), None if around.bias is None else around.bias.bfloat16()
    return tuple(surrounded(make(weight, bias), around) for make in (Plain, Widened))


def widened(weight: Tensor, around: Around) -> Kernels:
    weight = weight.bfloat16()
    if native.is_available():
        return (float_product(weight, around),)
    return (surrounded(Widened(weight, around.bias), around),)


def int8(weight: Tensor, around: Around) -> Kernels:
    """Chosen by the CPU's flags, and by time only between two that round alike.

    Torch's has the arithmetic for many rows where a CPU multiplies whole tiles (AMX).
    """
    if not native.is_available() or weight.shape[1] % 4:
        torchs = EightBit if has_vnni() else EightBitWeights
        return (surrounded(torchs(weight, around.bias), around),)
    ours = eight_bit_product(*eight_bits(weight), around)
    if not has_tiles("amx_int8"):
        return (ours,)
    return ours, surrounded(EightBit(weight, around.bias), around)


def int4(weight: Tensor, around: Around) -> Kernels:
    """For many rows the same 4-bit values in 8 bits: their kernel has few times the arithmetic.

    In 8 bits alone where a shape does not fit the kernel.
    """
    is_ours = native.is_available()
    if weight.shape[1] % GROUP or (weight.shape[0] % 64 and not is_ours):
        return int8(weight, around)
    rounded, scales, lowest = four_bits(weight)
    groups = rounded.unflatten(1, (-1, GROUP)) * scales.unsqueeze(-1) + lowest.unsqueeze(-1)
    many = int8(groups.flatten(1), around)[-1]
    if is_ours:
        return four_bit_product(rounded, scales, lowest, around), many
    return surrounded(FourBit(rounded, scales, lowest, around.bias), around), many


class Surrounded:
    """A kernel of torch's, and what is done beside it."""

    def __init__(self, kernel: Kernel, around: Around) -> None:
        self.kernel, self.around, self.nbytes = kernel, around, kernel.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        out, activation = self.kernel(self.around.normed(x)), self.around.activation
        return out if activation is None else activation(out)


def surrounded(kernel: Kernel, around: Around) -> Kernel:
    """With its bias already in it."""
    has_more = around.norm is not None or around.activation is not None
    return Surrounded(kernel, around) if has_more else kernel


def inner(kernel: Kernel) -> Kernel:
    return kernel.kernel if isinstance(kernel, Surrounded) else kernel


def as_float32(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


KERNELS: dict[str, Callable[[Tensor, Around], Kernels]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "widened": widened,
    "int8": int8,
    "int4": int4,
}


@cache
def has_vnni() -> bool:
    """Whether 8-bit products do not saturate on their way to 32 bits."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_vnni") or flags.get("avx_vnni"))


@cache
def has_tiles(flag: str) -> bool:
    return bool(torch.cpu.get_capabilities().get(flag))


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    kind: str,
    dtype: torch.dtype | None = None,
    activation: Activation | None = None,
    norm: nn.Module | None = None,
) -> PackedLinear:
    """A weight [out, in] and its bias in the layout of `kind`, and what is done beside it."""
    assert norm is None or (isinstance(norm, Norm) and type(norm) in NORMS)
    around = Around(None if bias is None else bias.detach(), activation, norm)
    return PackedLinear(kind, weight.detach(), around, dtype)


_MEASURED: dict[tuple[str, tuple[int, int], int], float] = {}


def measured(kind: str, shape: tuple[int, int], few: Kernel, many: Kernel) -> float:
    """From how many rows `many` is the faster: once for each kind, shape and number of threads."""
    key = (kind, shape, torch.get_num_threads())
    if key not in _MEASURED:
        tried = [num for num in TRIED if num >= TRIED_FROM.get(kind, 1)]
        _MEASURED[key] = crossover(few, many, shape[0], tried)
    return _MEASURED[key]


def crossover(few: Kernel, many: Kernel, in_features: int, tried: Sequence[int] = TRIED) -> float:
    """The smallest tried number of rows from which `many` wins at every larger one, too."""
    first = float("inf")
    for num_rows in reversed(tried):
        if not is_faster(many, few, torch.randn(num_rows, in_features)):
            break
        first = num_rows
    return first


def is_faster(one: Kernel, other: Kernel, x: Tensor) -> bool:
    """By the best of a few turns each, taken in turn: what else runs disturbs both."""
    best = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        for index, kernel in enumerate((one, other)):
            started = time.perf_counter()
            kernel(x)
            best[index] = min(best[index], time.perf_counter() - started)
    return best[0] < best[1]

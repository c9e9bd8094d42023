"""Products of the C kernels with packed weights, in 32, 16, 8 or 4 bits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import gelu_tanh, squared_relu
from . import check, library

WIDE = 64  # outputs in a panel
GROUP = 32  # inputs that share a 4-bit scale
SHIFT = 128  # inputs in 8 bits are unsigned around it, as the kernels take them
Norm = nn.LayerNorm | nn.RMSNorm
NORMS: dict[type[nn.Module], int] = {nn.LayerNorm: 1, nn.RMSNorm: 2}
TYPES = {  # of weights
    **{torch.float32: 0, torch.bfloat16: 1, torch.float16: 2},
    **{torch.int8: 3, torch.uint8: 4},  # the latter holds two numbers of 4 bits
}
Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[Activation | None, int] = {
    None: 0,
    F.relu: 1,
    squared_relu: 2,
    F.gelu: 3,
    gelu_tanh: 4,
    F.silu: 5,
}


class BendStruct(ctypes.Structure):
    """`struct bend` of step.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "y")),
        ("width", c_long),
        *((name, c_int) for name in ("activation", "is_gated")),
    ]


class LinearStruct(ctypes.Structure):
    """`struct linear` of step.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "scales", "shift", "bias")),
        *((name, c_void_p) for name in ("norm_weight", "norm_bias")),
        *((name, c_long) for name in ("inputs", "outputs")),
        *((name, c_int) for name in ("kind", "activation", "norm")),
        ("norm_eps", c_float),
    ]


@dataclass(frozen=True)
class Around:
    """What is done beside a product: activation(norm(x) · W + bias)."""

    bias: Tensor | None = None
    activation: Activation | None = None
    norm: Norm | None = None

    def normed(self, x: Tensor) -> Tensor:
        """What is multiplied. A norm takes its own type alone; what is measured is float32."""
        if self.norm is None:
            return x
        out: Tensor = self.norm(x if self.norm.weight is None else x.to(self.norm.weight.dtype))
        return out


class Product:
    """activation(norm(x) · W + b) + more; a row's numbers do not depend on the rows beside it.

    Eight bits: each row of x is rounded to 8 bits by itself; four: each `GROUP` of a row.
    """

    def __init__(
        self,
        panels: Tensor,
        shape: tuple[int, int],
        around: Around,
        scales: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        """Of weights [out, in] in panels, as the functions below lay them out."""
        assert panels.data_ptr() % 64 == 0, "the kernels read whole cache lines"
        bias = None if around.bias is None else padded(around.bias.float())
        self.weight, (self.outputs, self.inputs) = panels, shape
        self.kept = scales, shift, bias, *norm_numbers(around.norm)  # the kernels have addresses
        self.nbytes = sum(x.nbytes for x in (panels, scales, shift) if x is not None)
        self.struct = LinearStruct(
            *(None if x is None else x.data_ptr() for x in (panels, *self.kept)),
            *(shape[1], shape[0], TYPES[panels.dtype], ACTIVATIONS[around.activation]),
            *((0, 0.0) if around.norm is None else (NORMS[type(around.norm)], around.norm.eps)),
        )
        self.address, self.run = ctypes.addressof(self.struct), library().flamingo_linear

    def move(self, room: Tensor) -> None:
        """Its weights into memory [nbytes of them] that begins with a cache line."""
        moved = room.view(self.weight.dtype).view(self.weight.shape).copy_(self.weight)
        self.weight, self.struct.weight = moved, moved.data_ptr()

    def __call__(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        """[..., in] of any float type, and float32 [..., out] to be added → float32 [..., out]"""
        if x.dtype != torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        assert x.shape[-1] == self.inputs, "the kernel would read beyond the rows"
        out, address = x.new_empty((*x.shape[:-1], self.outputs)), None
        if more is not None:
            more = more.contiguous()
            assert more.shape == out.shape and more.dtype == torch.float32
            address = more.data_ptr()
        rows, threads = x.numel() // self.inputs, torch.get_num_threads()
        check(self.run(self.address, x.data_ptr(), rows, out.data_ptr(), address, threads))
        return out


def bend(x: Tensor, activation: Activation, is_gated: bool = False) -> Tensor:
    """activation(x), or of gates and what they let through side by side: activation(gate) * rest.

    Float32 on the CPU, [..., in]; a token's numbers are those it has in a `Step`.
    """
    assert x.dtype == torch.float32
    x = x.contiguous()
    width = x.shape[-1] // (1 + is_gated)
    out = x.new_empty((*x.shape[:-1], width))
    struct = bend_struct(x, out, activation, is_gated)
    rows, threads = x.numel() // x.shape[-1], torch.get_num_threads()
    library().flamingo_bend(ctypes.addressof(struct), rows, threads)
    return out


def bend_struct(x: Tensor, out: Tensor, activation: Activation, is_gated: bool) -> BendStruct:
    addresses = x.data_ptr(), out.data_ptr()
    return BendStruct(*addresses, out.shape[-1], ACTIVATIONS[activation], is_gated)


def norm_numbers(norm: Norm | None) -> tuple[Tensor | None, Tensor | None]:
    if norm is None:
        return None, None
    parts = norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None
    weight, bias = (None if x is None else x.detach().float().contiguous() for x in parts)
    return weight, bias


def float_product(weight: Tensor, around: Around) -> Product:
    """Of any float type; its sums are float32."""
    panels = padded(narrowed(weight)).unflatten(0, (-1, WIDE)).transpose(1, 2)
    return Product(panels.contiguous(), shape_of(weight), around)


def narrowed(weight: Tensor) -> Tensor:
    """In 16 bits where they hold the same numbers, as of most published checkpoints: decoding reads
    half as much, and its sums are the same bits.
    """
    for dtype in (torch.bfloat16, torch.float16):  # the first is widened with less work
        for some in (weight[:1], weight):  # one row tells most that are not
            narrow = some.to(dtype)
            if not torch.equal(narrow.float(), some.float()):
                break
        else:
            return narrow
    return weight.float()


def eight_bit_product(rounded: Tensor, scales: Tensor, around: Around) -> Product:
    """Of `linears.eight_bits`; the number of inputs is a multiple of 4."""
    panels = padded(rounded).unflatten(0, (-1, WIDE)).unflatten(2, (-1, 4)).transpose(1, 2)
    shift = padded(rounded.sum(1, dtype=torch.int32) * -SHIFT)
    return Product(panels.contiguous(), shape_of(rounded), around, padded(scales), shift)


def four_bit_product(rounded: Tensor, scales: Tensor, lowest: Tensor, around: Around) -> Product:
    """Of `linears.four_bits`; the number of inputs is a multiple of `GROUP`."""
    outputs = padded(rounded.to(torch.uint8)).unflatten(0, (-1, 4, 16))
    inputs = outputs.unflatten(3, (-1, 2, 4, 4))  # [panels, 4, 16, groups, halves, 4, 4]
    low, high = inputs.permute(4, 0, 3, 1, 5, 2, 6)  # [panels, groups, 4, 4, 16, 4]
    pairs = torch.stack([padded(scales), padded(lowest)]).bfloat16()
    pairs = pairs.unflatten(1, (-1, WIDE)).permute(1, 3, 0, 2)  # [panels, groups, 2, WIDE]
    parts = (low | high << 4).flatten(2), pairs.contiguous().view(torch.uint8).flatten(2)
    return Product(torch.cat(parts, dim=-1), shape_of(rounded), around)


def padded(x: Tensor) -> Tensor:
    """Zeros behind the last output, up to a whole panel; always memory of its own."""
    rows = x.new_zeros(-(-len(x) // WIDE) * WIDE, *x.shape[1:])
    rows[: len(x)] = x
    return rows


def shape_of(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]

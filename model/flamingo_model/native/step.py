"""The layers of a decoding step as a list that the C kernels work off in one call."""

from __future__ import annotations

import ctypes
from ctypes import c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from . import check, library
from .attention import PagedStruct
from .products import Activation, Product, bend_struct

PRODUCT, BEND, KEEP, ATTEND = range(4)


class OpStruct(ctypes.Structure):
    """`struct op` of step.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("what", "x", "y", "residual")),
        ("kind", c_long),
    ]


class KeepStruct(ctypes.Structure):
    """`struct keep` of step.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("qkv", "k_cache", "v_cache", "places", "cos", "sin")),
        *((name, c_long) for name in ("heads", "kv_heads", "head_dim", "turned")),
        ("are_neighbours", c_long),
    ]


@dataclass(frozen=True)
class Turns:
    """Rotary positions: cos and sin [rows, turned] of each row's, and whether neighbours turn."""

    cos: Tensor
    sin: Tensor
    are_neighbours: bool

    def write(self, cos: Tensor, sin: Tensor) -> None:
        """Of the first rows, as `positions.Rotary.angles` has them."""
        for table, angles in zip((self.cos, self.sin), (cos, sin), strict=True):
            table[: len(angles)] = angles.squeeze(1)


class Step:
    """Ops are added in the order in which they are done, and read and write the same memory at each
    call: buffers [rows, width] of float32, of which a call takes the first rows.
    """

    def __init__(self) -> None:
        self.ops, self.kept = list[OpStruct](), list[object]()
        self.array: ctypes.Array[OpStruct] | None = None

    def product(
        self,
        product: Product,
        x: Tensor,
        y: Tensor,
        more: Tensor | None = None,
    ) -> None:
        """y = product of x + more, which may be y itself."""
        assert all(buffer.is_contiguous() and buffer.dtype == torch.float32 for buffer in (x, y))
        assert x.shape[1] == product.inputs and y.shape[1] == product.outputs
        assert more is None or (more.is_contiguous() and more.shape == y.shape)
        address = None if more is None else more.data_ptr()
        self.add(PRODUCT, product.struct, x.data_ptr(), y.data_ptr(), address)
        self.kept += product, x, y, more

    def bend(self, x: Tensor, y: Tensor, activation: Activation, is_gated: bool) -> None:
        """`products.bend` of x [rows, width], or gated [rows, 2 * width]"""
        assert x.is_contiguous() and y.is_contiguous() and x.dtype == y.dtype == torch.float32
        assert x.shape[1] == y.shape[1] * (1 + is_gated)
        self.add(BEND, bend_struct(x, y, activation, is_gated))
        self.kept += x, y

    def keep(
        self, qkv: Tensor, k: Tensor, v: Tensor, places: Tensor, turns: Turns | None = None
    ) -> None:
        """Of queries, keys and values side by side the last two to their `places` [rows] in the
        caches k and v [places, kv_heads, head_dim]; before, queries and keys are turned in place.
        """
        assert k.shape == v.shape and k.is_contiguous() and v.is_contiguous()
        assert qkv.dtype == k.dtype == v.dtype == torch.float32
        assert qkv.is_contiguous() and places.is_contiguous() and places.dtype == torch.long
        kv_heads, head_dim = k.shape[1:]
        heads = qkv.shape[1] // head_dim - 2 * kv_heads
        assert qkv.shape[1] == (heads + 2 * kv_heads) * head_dim
        addresses = [x.data_ptr() for x in (qkv, k, v, places)]
        sizes = heads, kv_heads, head_dim
        if turns is None:
            struct = KeepStruct(*addresses, None, None, *sizes, 0, False)
        else:
            tables, turned = (turns.cos, turns.sin), turns.cos.shape[1]
            assert all(x.is_contiguous() and x.shape[1] == turned <= head_dim for x in tables)
            addresses += [x.data_ptr() for x in tables]
            struct = KeepStruct(*addresses, *sizes, turned, turns.are_neighbours)
        self.add(KEEP, struct)
        self.kept += qkv, k, v, places, turns

    def attend(self, struct: PagedStruct, *kept: object) -> None:
        """As `struct` says, which has the addresses of what is `kept`."""
        self.add(ATTEND, struct)
        self.kept += kept

    def add(self, kind: int, what: ctypes.Structure, *addresses: int | None) -> None:
        self.ops.append(OpStruct(ctypes.addressof(what), *(addresses or (None,) * 3), kind))
        self.kept.append(what)
        self.array = None

    def __call__(self, rows: int) -> None:
        if self.array is None:
            self.array = (OpStruct * len(self.ops))(*self.ops)
        threads = torch.get_num_threads()
        check(library().flamingo_step(self.array, len(self.ops), rows, threads))

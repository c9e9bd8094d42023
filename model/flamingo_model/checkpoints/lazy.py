"""Tensors that are still in their files: they know shape and type, and how to come about.

A reader renames, cuts, joins and adds such tensors as if they were there; only shapes are computed.
What was asked for is done again, with data, when one of the results is read. So one reader serves
to load, to quantise and to convert, and none of them holds more than the tensor at hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .weights import Weights

NEEDS_DATA = {torch.equal}
IN_PLACE = re.compile(r"__(set|del)item__|__i(add|sub|mul|truediv)__|(?!.*__)[a-z0-9_]+_")


class Lazy(Tensor):
    """A tensor on "meta" with `read`, which gives the real one: never kept, read when wanted.

    Changing it in place raises TypeError; asking for its numbers raises as on "meta".
    """

    read: Callable[[], Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if IN_PLACE.fullmatch(func.__name__):
            raise TypeError(f"{func.__name__} on a tensor that is still in its file")
        if func in NEEDS_DATA:
            return func(*real_all(args), **real_all(kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            shape = func(*tree_map_only(Tensor, bare, args), **tree_map_only(Tensor, bare, kwargs))
        if isinstance(shape, Tensor):
            return lazy(shape, lambda: func(*real_all(args), **real_all(kwargs)))
        if isinstance(shape, tuple | list) and shape and isinstance(shape[0], Tensor):
            return [lazy(x, piece(func, args, kwargs, i)) for i, x in enumerate(shape)]
        return shape


def piece(func: Any, args: Any, kwargs: Any, index: int) -> Callable[[], Tensor]:
    """One of several results; the others are views, and cost nothing."""
    return lambda: func(*real_all(args), **real_all(kwargs))[index]


def lazy(shape: Tensor, read: Callable[[], Tensor]) -> Lazy:
    made: Lazy = Tensor._make_subclass(Lazy, shape)
    made.read = read
    return made


def bare(tensor: Tensor) -> Tensor:
    """Shape, strides and type only."""
    return tensor.as_subclass(Tensor) if isinstance(tensor, Lazy) else tensor.to("meta")


def real(tensor: Tensor) -> Tensor:
    """With its data: a view of a file, where it is one whole tensor of it."""
    return tensor.read() if isinstance(tensor, Lazy) else tensor


def real_all(values: Any) -> Any:
    return tree_map_only(Tensor, real, values)


def all_lazy(weights: Weights) -> dict[str, Tensor]:
    """Everything in files, by name."""

    def one(name: str) -> Callable[[], Tensor]:
        return lambda: weights[name]

    return {name: lazy(shape, one(name)) for name, shape in weights.layout.items()}


class Recipes:
    """What a reader made of lazy tensors, as weights to load or to write."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.layout = {name: bare(tensor) for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return real(self.tensors[name])

"""Networks without numbers, for checkpoints to fill, or to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWN: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.randn: torch.empty,
    torch.rand: torch.empty,
}
FILLERS = ("normal_", "uniform_", "zero_", "fill_")  # of tensors; `nn.init` has many more


class Undrawn(TorchFunctionMode):
    """What would fill a tensor on "meta" with numbers leaves it as it is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_filler(func):
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return DRAWN.get(func, func)(*args, **kwargs)


def is_filler(func: Any) -> bool:
    return getattr(func, "__module__", None) == "torch.nn.init" or func.__name__ in FILLERS


@contextmanager
def hollow() -> Iterator[None]:
    """Tensors made in here are on "meta", and nothing is drawn for them.

    Drawing on "meta" gives no numbers either, but makes torch import its compiler: two seconds.
    """
    with torch.device("meta"), Undrawn():
        yield

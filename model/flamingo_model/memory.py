"""Memory of a CPU that is taken from the system where something is first written."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor


def small_pages(num_bytes: int) -> Tensor:
    """Zeros, uint8 [num_bytes], for what fills up while requests wait: a first write is short.

    numpy and torch ask for large pages, whose first writes were twenty times as slow here.
    """
    return torch.frombuffer(room(num_bytes), dtype=torch.uint8)[:num_bytes]


def large_pages(num_bytes: int) -> Tensor:
    """The same for what is written once and read often: reading is a fifth faster here."""
    found = room(num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system built without them
            found.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(found, dtype=torch.uint8)[:num_bytes]


def room(num_bytes: int) -> mmap.mmap:
    num_bytes = max(1, num_bytes)
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, num_bytes)
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

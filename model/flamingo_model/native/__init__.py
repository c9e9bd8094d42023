"""Our own C kernels for x86-64 with AVX-512 and VNNI: products with packed weights, attention, and
whole decoding steps of them.

Compiled when the package is installed, if there is a compiler (`compiling`). Without them, or on
another CPU, torch's own kernels do the same: ask `is_available`. Both share torch's threads.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import c_char_p, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .compiling import LIBRARY, sources_digest

log = logging.getLogger(__name__)
NEEDED = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "fma3")


@cache
def library() -> Any:
    """The loaded kernels, or None. torch is loaded first, so that both share one OpenMP."""
    flags = torch.cpu.get_capabilities()
    path = Path(__file__).with_name(LIBRARY)
    if not path.exists() or not all(flags.get(flag) for flag in NEEDED):
        return None
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError:  # of another system, or of a newer OpenMP
        return None
    if is_stale(loaded, path.parent):
        log.warning("%s is made of other sources: python %s/compiling.py", path, path.parent)
        return None
    loaded.flamingo_linear.argtypes = (c_void_p, c_void_p, c_long, c_void_p, c_void_p, c_int)
    loaded.flamingo_attend.argtypes = (c_void_p, c_int)
    loaded.flamingo_attend_paged.argtypes = (c_void_p, c_int)
    loaded.flamingo_bend.argtypes = (c_void_p, c_long, c_int)
    loaded.flamingo_bend.restype = None
    loaded.flamingo_step.argtypes = (c_void_p, c_long, c_long, c_int)
    return loaded


def is_stale(loaded: Any, folder: Path) -> bool:
    """Whether it was compiled before the sources beside it: its structs may be others."""
    if not hasattr(loaded, "flamingo_sources"):
        return True
    loaded.flamingo_sources.restype = c_char_p
    digest = sources_digest(folder)
    return bool(digest) and loaded.flamingo_sources() != digest.encode()


def is_available() -> bool:
    return library() is not None


def can_take(like: Tensor) -> bool:
    """Whether the kernels can read numbers of this type, where they are."""
    return is_available() and like.dtype == torch.float32 and like.device.type == "cpu"


def check(status: int) -> None:
    """Raises MemoryError where a kernel had no room for its working numbers."""
    if status:
        raise MemoryError("no memory for a kernel's working numbers")

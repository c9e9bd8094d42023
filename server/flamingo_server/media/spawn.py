"""Worker processes that import what they are handed and nothing of the program around them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType

_main_lock = threading.Lock()


class BareProcess(SpawnProcess):
    """A spawned process that does not run its parent's main script again.

    `multiprocessing` re-imports that script in every child. Ours leads to torch and fastapi:
    seconds to start, gigabytes that count against the memory limit, and more code for a hostile
    picture to use.
    """

    def start(self) -> None:
        with _main_hidden():
            super().start()


class BareSpawnContext(SpawnContext):
    """`multiprocessing.get_context("spawn")` with `BareProcess` for its processes."""

    Process = BareProcess


@contextmanager
def _main_hidden() -> Iterator[None]:
    """`multiprocessing` looks at `sys.modules["__main__"]` to learn what to run again."""
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main

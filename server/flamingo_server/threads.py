"""Threads beside the event loop: work that may use torch, and who goes first."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
NICENESS = 5  # measured: more gains little, and a machine shared with others would leave us less


async def in_passing_thread(function: Callable[[], T]) -> T:
    """Runs it in a thread that ends with it.

    Torch makes a team of workers for every thread it is used in, and once there are more of them
    than cores none waits actively any more: each of the engine's steps then takes three times as
    long. So no thread but the engine's may use torch and live on, as `asyncio.to_thread`'s do.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, function)


def give_way(thread: threading.Thread) -> None:
    """A thread that works on every core, and the workers it will start, let others go first.

    Otherwise an event loop that has a token to send waits up to 5 ms for a core. Linux alone gives
    threads priorities of their own.
    """
    if sys.platform == "linux" and thread.native_id is not None:
        with suppress(OSError):  # it has ended
            now = os.getpriority(os.PRIO_PROCESS, thread.native_id)
            os.setpriority(os.PRIO_PROCESS, thread.native_id, now + NICENESS)

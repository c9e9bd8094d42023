"""Work off the event loop that may use torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_passing_thread(function: Callable[[], T]) -> T:
    """Runs it in a thread that ends with it.

    Torch makes a team of workers for every thread it is used in, and once there are more of them
    than cores none waits actively any more: each of the engine's steps then takes three times as
    long. So no thread but the engine's may use torch and live on, as `asyncio.to_thread`'s do.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="passing") as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

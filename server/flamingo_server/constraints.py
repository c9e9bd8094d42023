"""Constraints compiled off the event loop and off the engine's thread, each on trial first."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

from .constraint_trial import Trial, draining
from .engine.constraints import Constraint, Grammar, Grammars
from .errors import QueueFull

MIB = 2**20


class ConstraintCompiler:
    """Cheap to make: the process starts with `warm()`, or with the first constraint."""

    def __init__(
        self,
        grammars: Grammars,
        timeout_s: float = 2.0,
        *,
        memory_bytes: int = 128 * MIB,
        max_waiting: int = 16,
    ) -> None:
        self.grammars = grammars
        self.max_waiting = max_waiting
        self._trial = Trial(grammars.vocabulary, timeout_s, memory_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._under_way: set[Future[None]] = set()
        self._is_closed = False

    def warm(self) -> None:
        """Starts the process in the background; returns at once."""
        self._thread.submit(self._trial.start)

    def close(self) -> None:
        """Kills the process, whatever it is doing. Constraints under way end in an error."""
        self._is_closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._trial.close()

    async def compile(self, constraint: Constraint) -> Grammar:
        """The grammar; from then on `grammars.compile` finds it too.

        Raises:
            ConstraintError: malformed, unsatisfiable, or over a limit of size, time or memory.
            QueueFull: too many constraints are waiting.
            Draining: this is closed.
        """
        found = self.grammars.find(constraint)
        if found is not None:
            return found
        await self._try(constraint)
        return await asyncio.to_thread(self.grammars.compile, constraint)

    async def _try(self, constraint: Constraint) -> None:
        if len(self._under_way) >= self.max_waiting:
            raise QueueFull("Too many constraints are waiting. Try again later.")
        if self._is_closed:
            raise draining()
        future = self._thread.submit(self._trial.run, constraint)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_closed and not _is_cancelling():
                raise draining() from None
            raise


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""Constraints compiled off the event loop and off the engine's thread, each on trial first."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

from .constraint_trial import serve
from .engine.constraints import Constraint, ConstraintError, Grammar, Grammars
from .engine.grammar import TOO_COMPLEX, Vocabulary
from .errors import Draining, EngineFailure, QueueFull
from .media.spawn import BareProcess, BareSpawnContext

MIB = 2**20
START_TIMEOUT_S = 60.0  # of the process, on a busy machine; not the client's fault


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
            raise _draining()
        future = self._thread.submit(self._trial.run, constraint)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        try:
            await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_closed and not _is_cancelling():
                raise _draining() from None
            raise


class Trial:
    """A process that compiles what it is sent and answers whether that went well.

    Blocking: `start` and `run` belong to one thread; `close` may come from another.
    """

    def __init__(self, vocabulary: Vocabulary, timeout_s: float, memory_bytes: int) -> None:
        self._vocabulary, self._memory_bytes = vocabulary, memory_bytes
        self._timeout_s = timeout_s
        self._process: BareProcess | None = None
        self._pipe: Connection | None = None
        self._is_closed = False
        self._lock = threading.Lock()  # `close` against a start

    def start(self) -> Connection:
        """The pipe to a living process. Raises Draining or EngineFailure."""
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        with self._lock:
            if self._is_closed:
                raise _draining()
            context = BareSpawnContext()
            self._pipe, theirs = context.Pipe()
            self._process = BareProcess(
                target=serve, args=(theirs, self._vocabulary, self._memory_bytes), daemon=True
            )
            self._process.start()
            theirs.close()  # so that its death is the end of the pipe
        if self._answer(START_TIMEOUT_S) != "":
            self._kill()
            raise EngineFailure("The compiler of constraints does not start.")
        return self._pipe

    def run(self, constraint: Constraint) -> None:
        """Raises ConstraintError, Draining or EngineFailure."""
        self.start().send(constraint)
        problem = self._answer(self._timeout_s)
        if problem is None:
            self._kill()
            raise _draining() if self._is_closed else ConstraintError(TOO_COMPLEX)
        if problem:
            raise ConstraintError(problem)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._kill()

    def _answer(self, timeout_s: float) -> str | None:
        """None if it takes too long, or dies: for want of memory, most likely."""
        assert self._pipe is not None
        try:
            return self._pipe.recv_bytes().decode() if self._pipe.poll(timeout_s) else None
        except (EOFError, OSError):
            return None

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _draining() -> Draining:
    return Draining("The server is shutting down. Send the request again later.", code="draining")


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""A constraint compiled for trial, in a process that can be killed. No torch here: the process
must start fast, and it counts its memory.

llguidance bounds most of its work, but not all: a schema of 16,000 characters full of `multipleOf`
took 29 s and 1.4 GB.
"""

from __future__ import annotations

import signal
import sys
import threading
from multiprocessing.connection import Connection

from .engine.grammar import TOO_COMPLEX, Compiler, Constraint, ConstraintError, Vocabulary
from .errors import Draining, EngineFailure
from .media.spawn import BareProcess, BareSpawnContext

START_TIMEOUT_S = 60.0  # of the process, on a busy machine; not the client's fault


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
                raise draining()
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
            raise draining() if self._is_closed else ConstraintError(TOO_COMPLEX)
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
            return str(self._pipe.recv()) if self._pipe.poll(timeout_s) else None
        except (EOFError, OSError):
            return None

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()


def serve(pipe: Connection, vocabulary: Vocabulary, memory_bytes: int) -> None:
    """The process: one text for each constraint, empty if it compiles. One more when ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    compiler = Compiler(vocabulary)
    assert compiler.tokenizer  # read now, outside the client's time
    compiler.compile(Constraint("choices", '["a"]'))
    limit_memory(memory_bytes)
    pipe.send("")
    while True:
        try:
            constraint = pipe.recv()
        except EOFError:  # the server is gone
            return
        pipe.send(problem_with(compiler, constraint))


def problem_with(compiler: Compiler, constraint: Constraint) -> str:
    try:
        compiler.compile(constraint)
    except ConstraintError as error:
        return error.message
    except MemoryError:
        return TOO_COMPLEX
    return ""


def limit_memory(more_bytes: int) -> None:
    """This process may take `more_bytes` than it has; where the system keeps no count, anything."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + more_bytes
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def draining() -> Draining:
    return Draining("The server is shutting down. Send the request again later.", code="draining")

"""Inside a process that can be killed: a stranger's constraint is compiled for trial, and thrown
away. No torch here: the process must start fast, and it counts its memory.

llguidance bounds most of its work, but not all: a schema of 16,000 characters full of `multipleOf`
took 29 s and 1.4 GB.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from .engine.grammar import TOO_COMPLEX, Compiler, Constraint, ConstraintError, Vocabulary
from .memory import limit_memory


def serve(pipe: Connection, vocabulary: Vocabulary, memory_bytes: int) -> None:
    """The process: one text for each constraint, empty if it compiles. One more when ready."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    compiler = Compiler(vocabulary)
    assert compiler.tokenizer  # read now, outside the client's time
    compiler.compile(Constraint("choices", '["a"]'))
    limit_memory(memory_bytes)
    leave_no_core()
    pipe.send_bytes(b"")
    while True:
        try:
            constraint = pipe.recv()
        except EOFError:  # the server is gone
            return
        pipe.send_bytes(problem_with(compiler, constraint).encode())


def problem_with(compiler: Compiler, constraint: Constraint) -> str:
    try:
        compiler.compile(constraint)
    except ConstraintError as error:
        return error.message
    except MemoryError:
        return TOO_COMPLEX
    return ""


def leave_no_core() -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

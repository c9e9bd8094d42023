"""Compiles the C files beside it into one library, when the package is built or by hand.

`python model/flamingo_model/native/compiling.py` says what it did. Where it cannot, there is no
library, and whoever asked goes on without. Nothing but the standard library is imported: the build
hook runs this file by its path, where neither torch nor this package is installed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY = "kernels.so"
FLAGS = (
    *("-O3", "-std=gnu11", "-fno-math-errno", "-fPIC", "-shared", "-fopenmp"),
    "-ffp-contract=off",  # where a multiplication and a sum are rounded as one, the source says so
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma"),
    *("-Wall", "-Wextra", "-Werror=implicit-function-declaration"),
)
COMPILERS = ("gcc", "cc")
# torch runs on libgomp, GCC's. Clang's and Intel's would start threads of their own beside it.
OTHER_OPENMP = (b"libomp.so", b"libiomp5.so")

log = logging.getLogger(__name__)


class CannotCompile(Exception):
    """Carries the reason in one line."""


def compile_kernels(folder: Path) -> Path | None:
    """All `*.c` in `folder` → `kernels.so` in it, replaced in one step.

    The library must be loaded after torch: by its name, the loader then gives it the libgomp that
    torch brought. AVX-512 with VNNI is asked of the processor that runs it, not of this one.

    Returns None where it cannot, and logs why as a warning, in one line. An older library is then
    removed: it may compute something else than the sources beside it.
    """
    library = folder / LIBRARY
    try:
        compiler = find_compiler()
        # In the same folder, thus on the same disk: the library is moved, never copied.
        with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as scratch:
            made = Path(scratch).resolve() / LIBRARY
            link(compiler, folder, made)
            os.replace(made, library)
    except (CannotCompile, OSError) as reason:
        log.warning("%s is left out: %s", LIBRARY, reason)
        remove(library)
        return None
    log.info("%s is compiled by %s", library, " ".join(compiler))
    return library


def find_compiler() -> list[str]:
    """$CC, which may hold flags of its own, or the first of COMPILERS on the path."""
    machine = f"{sys.platform} on {platform.machine()}"
    if machine != "linux on x86_64":
        raise CannotCompile(f"the kernels are for linux on x86_64, this is {machine}")
    chosen = os.environ.get("CC", "").split()
    names = chosen[:1] or COMPILERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise CannotCompile(f"no C compiler: {' or '.join(names)} is not there")
    return [found, *chosen[1:]]


def link(compiler: list[str], folder: Path, made: Path) -> None:
    """Raises CannotCompile with the compiler's first error, or if `made` needs another OpenMP."""
    sources = sorted(path.name for path in folder.glob("*.c"))
    if not sources:
        raise CannotCompile(f"no C file in {folder}")
    done = subprocess.run(
        [*compiler, *FLAGS, f'-DSOURCES="{sources_digest(folder)}"', *sources, "-o", str(made)],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0 or not made.is_file():
        raise CannotCompile(first_error(done.stderr) or f"{compiler[0]} made nothing of it")
    if any(name in made.read_bytes() for name in OTHER_OPENMP):
        raise CannotCompile(f"{compiler[0]} links another OpenMP than torch's, unlike GCC")


def sources_digest(folder: Path) -> str:
    """Names what a library is made of, and how; empty where no source is beside it."""
    found = hashlib.sha256(repr(FLAGS).encode())
    sources = sorted(folder.glob("*.[ch]"))
    for path in sources:
        found.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest() if sources else ""


def first_error(said: str) -> str:
    """The compiler's or the linker's, or the first line: warnings may come before an error."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = (line for line in lines if re.search(r"error|\bld: ", line))
    return next(errors, lines[0] if lines else "")


def remove(library: Path) -> None:
    try:
        library.unlink(missing_ok=True)
    except OSError as reason:
        log.warning("the older %s stays: %s", LIBRARY, reason)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(0 if compile_kernels(Path(__file__).parent) else 1)

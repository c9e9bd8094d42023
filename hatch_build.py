"""hatchling's hook: compiles the kernels into the wheel, or beside the source if it is editable."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "model/flamingo_model/native"


class KernelsHook(BuildHookInterface[BuilderConfig]):
    """A wheel with the library is for this platform and any Python 3; one without is pure."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = compile_kernels(Path(self.root, NATIVE))
        if library and version == "standard":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["artifacts"].append(f"/{NATIVE}/{library.name}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"


def compile_kernels(folder: Path) -> Path | None:
    """By the package's own file, run by its path: the package needs torch, which is not here."""
    spec = importlib.util.spec_from_file_location("compiling", folder / "compiling.py")
    assert spec and spec.loader
    compiling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiling)
    library: Path | None = compiling.compile_kernels(folder)
    return library

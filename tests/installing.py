"""Wheels built from a tree as it is, and empty environments to install them in. No network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("FLAMINGO_", "PYTHON", "PIP_"))
}


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Its output; `env` goes over the environment of this process."""
    done = subprocess.run(
        list(map(str, command)), env=ENVIRONMENT | (env or {}), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, project: Path, folder: Path, env: dict[str, str] | None = None) -> Path:
    """A `wheel`, or an `sdist`."""
    options = (f"--{kind}", "--no-isolation", "--outdir", folder)
    run(sys.executable, "-m", "build", *options, project, env=env)
    (made,) = folder.iterdir()
    return made


def names_in(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def closure(
    requirements: list[str], found: dict[str, Distribution] | None = None
) -> list[Distribution]:
    """The distributions here that these lines need, and all that those need in turn."""
    found = {} if found is None else found
    for requirement in map(Requirement, requirements):
        for extra in {"", *requirement.extras}:
            key = f"{canonicalize_name(requirement.name)}[{extra}]"
            if key in found or (requirement.marker and not requirement.marker.evaluate()):
                continue
            found[key] = distribution(requirement.name)
            closure(needs(found[key], extra), found)
    return list(found.values())


def needs(known: Distribution, extra: str) -> list[str]:
    """Its requirements under one extra, their markers decided."""
    parsed = [Requirement(line) for line in known.requires or []]
    chosen = [r for r in parsed if not r.marker or r.marker.evaluate({"extra": extra})]
    return [str(r).partition(";")[0] for r in chosen]


@dataclass(frozen=True)
class Environment:
    """A new virtual environment that holds what is lent to it, and nothing else."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, requirements: list[str]) -> Environment:
        venv.create(folder, with_pip=False, symlinks=True)
        new = cls(folder)
        for known in closure(requirements):
            new.lend(known)
        return new

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    @property
    def packages(self) -> Path:
        (folder,) = self.folder.glob("lib/python3*/site-packages")
        return folder

    def lend(self, known: Distribution) -> None:
        """Links its top folders and files: no download, and nothing is copied."""
        assert known.files, f"{known.name} has no list of its files"
        for top in {path.parts[0] for path in known.files} - {"..", "__pycache__"}:
            link = self.packages / top
            if not link.exists():
                link.symlink_to(Path(str(known.locate_file(top))))

    def pip(self, *arguments: str | Path, env: dict[str, str] | None = None) -> None:
        run(sys.executable, "-m", "pip", "--python", self.folder, *arguments, env=env)

    def evaluate(self, expression: str, *imports: str) -> Any:
        code = f"import json, {', '.join(imports)}; print(json.dumps({expression}))"
        return json.loads(run(self.python, "-I", "-c", code))

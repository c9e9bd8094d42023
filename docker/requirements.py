"""Prints what both distributions need from elsewhere: `requirements.py runtime`, or `build`.

Their pyproject.toml files stay the only lists; it runs before anything is installed.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def requirements(kind: str) -> list[str]:
    projects = [
        tomllib.loads((ROOT / p).read_text()) for p in ("pyproject.toml", "clients/pyproject.toml")
    ]
    own = {project["project"]["name"] for project in projects}
    listed = {line for project in projects for line in needs(project, kind)}
    return sorted(line for line in listed if name(line) not in own)


def needs(project: dict[str, Any], kind: str) -> list[str]:
    lines: list[str] = {
        "runtime": project["project"]["dependencies"],
        "build": project["build-system"]["requires"],
    }[kind]
    return lines


def name(requirement: str) -> str:
    """ "uvicorn[standard]>=0.40" → "uvicorn"."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))

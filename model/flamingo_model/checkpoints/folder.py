"""Any folder → an open checkpoint: looks what the folder is and asks the reader of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .native import open_native
from .weights import CheckpointError


def open_folder(folder: Path) -> Checkpoint:
    """Raises CheckpointError for what no reader here knows, and for all that readers refuse."""
    values = read_config(folder / "config.json")
    if "format" not in values and (names := architecture(values)):
        raise CheckpointError(
            f"{folder}: no loader here for the architecture {names!r}; `flamingo models` lists some"
        )
    return open_native(folder)


def read_config(path: Path) -> dict[str, Any]:
    """Empty where there is none, or none that parses: readers say that better."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def architecture(values: dict[str, Any]) -> str:
    """What Hugging Face's config.json names."""
    named = values.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    return str(values.get("model_type") or "")

"""The one way to a checkpoint: a folder, a file with its parts, or a published name → open, lazy.

Knows which reader a family has and how a folder shows its own; nothing of any reader's inside.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint
from .families import FAMILIES, Parts, misfit
from .flamingo_mini import open_flamingo_mini
from .hub import MODEL, TOKENIZER, Download, Wanted, fetch, file, has_words, snapshot_download
from .idefics import open_idefics
from .native import EMBEDDED, open_native
from .openflamingo import open_openflamingo
from .openflamingo_v1 import open_openflamingo_v1
from .otter import open_otter, open_otter_weights
from .published import PUBLISHED, Published
from .weights import CheckpointError

logger = logging.getLogger("flamingo_model")
READERS: dict[str, Callable[..., Checkpoint]] = {
    "native": open_native,
    "idefics": open_idefics,
    "openflamingo": open_openflamingo,
    "openflamingo-v1": open_openflamingo_v1,
    "otter": open_otter,
    "otter-weights": open_otter_weights,
    "flamingo-mini": open_flamingo_mini,
}
MODEL_TYPES = {"idefics": "idefics", "otter": "otter", "flamingo": "otter"}
ARCHITECTURES = {
    "IdeficsForVisionText2Text": "idefics",
    "OtterForConditionalGeneration": "otter",
    "FlamingoForConditionalGeneration": "otter",
    "FlamingoModel": "flamingo-mini",
}
"""What config.json says, and which family that is."""
NO_PARTS = Parts()


@dataclass(frozen=True)
class Found:
    """A checkpoint all of whose parts are on this disk; `parts` are its reader's arguments."""

    path: Path
    family: str
    parts: dict[str, Path | int] = field(default_factory=dict)
    name: str | None = None  # None: the reader knows one


def open_checkpoint(
    source: str | Path,
    family: str = "auto",
    parts: Parts = NO_PARTS,
    download: Download = snapshot_download,
) -> Checkpoint:
    """Reads everything but tensors: `load` and `write_folder` take those, one at a time.

    `source` is "embedded", a folder, a file, or a name of `published.py`. Raises CheckpointError
    for what no reader here knows, for a part that is lacking or cannot be fetched, and for all
    that readers refuse.
    """
    found = locate(str(source), family, parts, download)
    opened = READERS[found.family](found.path, **found.parts)
    config = replace(opened.config, name=found.name or opened.config.name)
    if parts.media_rule is not None:
        try:
            rule = replace(config.cross_attention, media_rule=parts.media_rule)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        config = replace(config, cross_attention=rule)
    return replace(opened, config=config)


def locate(source: str, family: str, parts: Parts, download: Download) -> Found:
    """What is on this disk comes before what is published."""
    path = EMBEDDED if source == "embedded" else Path(source)
    if path.exists():
        return on_disk(path, family, parts, download)
    model = next((m for m in PUBLISHED if m.name == source), None)
    if model is None:
        raise CheckpointError(
            f"{source} is neither a checkpoint folder nor a published one: see `flamingo models`"
        )
    if family not in ("auto", model.family):
        raise CheckpointError(f"{source} is of the family {model.family}, not {family}")
    return published(model, parts, download)


# ---- on this disk


def on_disk(path: Path, family: str, parts: Parts, download: Download) -> Found:
    if family == "auto":
        family, parts = recognised(path, parts)
    if problem := misfit(family, parts.given()):
        raise CheckpointError(f"{path}: {problem}")
    words_only = family in ("otter", "flamingo-mini")
    found: dict[str, Path | int] = {}
    if parts.lm is not None:
        found["lm"] = folder_of("lm", parts.lm, TOKENIZER if words_only else MODEL, download)
    if parts.vision is not None:
        found["vision"] = folder_of("vision", parts.vision, MODEL, download)
    return Found(path, family, found | others(parts))


def others(parts: Parts) -> dict[str, Path | int]:
    """The parts that are no folders."""
    interval = parts.cross_attention_interval
    return ({} if interval is None else {"interval": interval}) | (
        {} if parts.lora is None else {"lora": Path(parts.lora)}
    )


def recognised(path: Path, parts: Parts) -> tuple[str, Parts]:
    """The family that a folder shows, and the parts that it names itself."""
    if path.is_file():
        families = ", ".join(name for name, takes in FAMILIES.items() if "lm" in takes.needs)
        raise CheckpointError(f"{path} is a file: say what wrote it with --family ({families})")
    values = read_config(path / "config.json")
    if "format" in values or not (names := architecture(values)):
        return "native", parts
    kind = values.get("model_type")
    family = MODEL_TYPES.get(str(kind)) or ARCHITECTURES.get(names)
    if family is None:
        raise CheckpointError(
            f"{path}: no loader here for the architecture {names!r}; `flamingo models` lists some"
        )
    if family == "flamingo-mini":
        lm, vision = (parts.lm or values.get("lm"), parts.vision or values.get("clip_model_type"))
        parts = replace(parts, lm=lm, vision=vision)
    return family, parts


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


# ---- on the hub


def published(model: Published, parts: Parts, download: Download) -> Found:
    """The checkpoint and the parts that the table names; those given come before the table's."""
    if not model.can_load:
        message = f"{model.name} is of the family {model.family}, which this version cannot load"
        raise CheckpointError(f"{message}; it loads: {', '.join(FAMILIES)}")
    if not model.is_on_hub:
        raise CheckpointError(f"{model.name} is not on the hub: {model.how}")
    takes = FAMILIES[model.family]
    known = (*takes.needs, *takes.may_have, "media_rule")
    if useless := [name for name in parts.given() if name not in known]:
        raise CheckpointError(f"{model.name} has no use for {', '.join(useless)}")
    found = others(parts)
    if "cross_attention_interval" in takes.needs:
        found.setdefault("interval", int(model.interval))
    if "lm" in takes.needs:
        wanted = TOKENIZER if model.family == "flamingo-mini" else MODEL
        found["lm"] = language_model(model, parts, wanted, download)
    if "vision" in takes.needs:
        found["vision"] = folder_of("vision", parts.vision or model.vision_tower, MODEL, download)
    folder = fetch(model.name, file(model.weights), download)
    if model.family == "otter" and not has_words(folder):
        found["lm"] = language_model(model, parts, TOKENIZER, download)
    is_file = "lm" in takes.needs and model.family != "flamingo-mini"
    logger.info("%s: licence: %s", model.name, model.licence)
    return Found(folder / model.weights if is_file else folder, model.family, found, model.name)


def language_model(model: Published, parts: Parts, wanted: Wanted, download: Download) -> Path:
    name = parts.lm or model.language_model
    if parts.lm is None and "/" not in name:
        raise CheckpointError(
            f"{model.name} stands on {name}, which nobody may simply download: "
            "give its folder with --lm"
        )
    return folder_of("lm", name, wanted, download)


def folder_of(part: str, name: str, wanted: Wanted, download: Download) -> Path:
    """A part's folder: one on this disk, or a repository's."""
    if (folder := Path(name)).is_dir():
        return folder
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise CheckpointError(f"{name} is no folder: give one with --{part}")
    try:
        return fetch(name, wanted, download)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; give its folder with --{part}") from error

"""A folder, a file or a published name → its family, and all of its parts on this disk.

Reads no more of a checkpoint than what its config.json says it is.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .families import FAMILIES, Parts, misfit
from .hub import MODEL, TOKENIZER, Download, Wanted, fetch, file, has_words
from .native import EMBEDDED
from .published import PUBLISHED, Published
from .weights import CheckpointError

logger = logging.getLogger("flamingo_model")
MODEL_TYPES = {"idefics": "idefics", "otter": "otter", "flamingo": "otter"}
ARCHITECTURES = {
    "IdeficsForVisionText2Text": "idefics",
    "OtterForConditionalGeneration": "otter",
    "FlamingoForConditionalGeneration": "otter",
    "FlamingoModel": "flamingo-mini",
}
"""What config.json says, and which family that is."""


@dataclass(frozen=True)
class Found:
    """A checkpoint all of whose parts are on this disk; `parts` are its reader's arguments."""

    path: Path
    family: str
    parts: dict[str, Path | int] = field(default_factory=dict)
    name: str | None = None  # None: the reader knows one


def locate(source: str, family: str, parts: Parts, download: Download) -> Found:
    """What is on this disk comes before what is published. Raises CheckpointError."""
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
    return on_hub(model, parts, download)


def on_disk(path: Path, family: str, parts: Parts, download: Download) -> Found:
    if family == "auto":
        family, parts = recognised(path, parts)
    if problem := misfit(family, parts.given()):
        raise CheckpointError(f"{path}: {problem}")
    found = plain(parts)
    if parts.lm is not None:
        found["lm"] = folder_of("lm", parts.lm, beneath(family), download)
    if parts.vision is not None:
        found["vision"] = folder_of("vision", parts.vision, MODEL, download)
    return Found(path, family, found)


def recognised(path: Path, parts: Parts) -> tuple[str, Parts]:
    """The family that a folder shows, and the parts that it names itself."""
    if path.is_file():
        names = ", ".join(name for name, takes in FAMILIES.items() if takes.is_file)
        raise CheckpointError(f"{path} is a file: say what wrote it with --family ({names})")
    values = read_config(path / "config.json")
    if "format" in values or not (name := architecture(values)):
        return "native", parts
    family = MODEL_TYPES.get(str(values.get("model_type"))) or ARCHITECTURES.get(name)
    if family is None:
        raise CheckpointError(
            f"{path}: no loader here for the architecture {name!r}; `flamingo models` lists some"
        )
    if family == "flamingo-mini":
        lm, vision = values.get("lm"), values.get("clip_model_type")
        parts = replace(parts, lm=parts.lm or lm, vision=parts.vision or vision)
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


def on_hub(model: Published, parts: Parts, download: Download) -> Found:
    """The checkpoint, and the parts that the table names; those given come before the table's.

    Parts come first: one that cannot be had is said before gigabytes are fetched.
    """
    refuse(model, parts)
    found = beside(model, parts, download)
    folder = fetch(model.name, file(model.weights), download)
    if model.family == "otter" and (parts.lm or not has_words(folder)):
        found["lm"] = language_model(model, parts, download)
    logger.info("%s: licence: %s", model.name, model.licence)
    path = folder / model.weights if FAMILIES[model.family].is_file else folder
    return Found(path, model.family, found, model.name)


def refuse(model: Published, parts: Parts) -> None:
    if not model.can_load:
        message = f"{model.name} is of the family {model.family}, which this version cannot load"
        raise CheckpointError(f"{message}; it loads: {', '.join(FAMILIES)}")
    if not model.is_on_hub:
        raise CheckpointError(f"{model.name} is not on the hub: {model.how}")
    from_table = FAMILIES[model.family].needs
    if problem := misfit(model.family, [*from_table, *parts.given()]):
        raise CheckpointError(f"{model.name}: {problem}")


def beside(model: Published, parts: Parts, download: Download) -> dict[str, Path | int]:
    """All that the family cannot do without."""
    found, needs = plain(parts), FAMILIES[model.family].needs
    if "cross_attention_interval" in needs:
        found.setdefault("interval", int(model.interval))
    if "lm" in needs:
        found["lm"] = language_model(model, parts, download)
    if "vision" in needs:
        tower = parts.vision or model.vision_tower
        found["vision"] = folder_of("vision", tower, MODEL, download)
    return found


def plain(parts: Parts) -> dict[str, Path | int]:
    """The parts that are no folders."""
    found: dict[str, Path | int] = {}
    if parts.cross_attention_interval is not None:
        found["interval"] = parts.cross_attention_interval
    if parts.lora is not None:
        found["lora"] = Path(parts.lora)
    return found


def language_model(model: Published, parts: Parts, download: Download) -> Path:
    name = parts.lm or model.language_model
    if parts.lm is None and "/" not in name:
        raise CheckpointError(
            f"{model.name} stands on {name}, which not everyone may download: "
            "give its folder with --lm"
        )
    return folder_of("lm", name, beneath(model.family), download)


def beneath(family: str) -> Wanted:
    """What is needed of the language model."""
    return MODEL if FAMILIES[family].has_weights_beneath else TOKENIZER


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

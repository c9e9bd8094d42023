"""Repositories of huggingface.co as folders: from its library's cache or, where that is not whole,
from the network. Only what will be read is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import INDEX, SINGLE, shards
from .weights import CheckpointError

Download = Callable[..., str]
"""`huggingface_hub.snapshot_download`, or what takes the same and returns a folder."""

WORDS = ("*.json", "*.txt", "*.model")
WEIGHTS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Wanted:
    """Patterns of files, the first that give a whole folder, and what a whole one is."""

    what: str
    choices: Sequence[Sequence[str]]
    is_whole: Callable[[Path], bool]


def has_words(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def has_weights(folder: Path) -> bool:
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    return found is not None and all_there(found)


def all_there(weights: Path) -> bool:
    """The file, and all shards where it is their index."""
    try:
        if weights.name.endswith(".index.json"):
            shards(weights)
        return weights.is_file()
    except CheckpointError:
        return False


MODEL = Wanted("weights", [(*WORDS, "*.safetensors"), (*WORDS, "pytorch_model*.bin")], has_weights)
"""A model as Hugging Face saves it; few have both kinds of files, and one is enough."""

TOKENIZER = Wanted("tokenizer", [WORDS], has_words)


def file(name: str) -> Wanted:
    """One file of weights, or the shards of this index, with all that is said about them."""
    suffix = f".{name.removesuffix('.index.json').rpartition('.')[2]}"
    weights = f"*{suffix}" if name.endswith(".index.json") else name
    return Wanted("weights", [(*WORDS, weights)], lambda folder: all_there(folder / name))


def fetch(name: str, wanted: Wanted, download: Download) -> Path:
    """Raises CheckpointError, with what the hub said."""
    for patterns in wanted.choices:
        if (folder := cached(name, patterns, wanted, download)) is not None:
            return folder
    for patterns in wanted.choices:
        try:
            folder = Path(download(name, allow_patterns=list(patterns)))
        except Exception as error:  # the hub's own, its HTTP library's, the system's
            raise CheckpointError(f"{name} cannot be downloaded: {error}") from error
        if wanted.is_whole(folder):
            return folder
    raise CheckpointError(f"{name} has no whole {wanted.what}")


def cached(name: str, patterns: Sequence[str], wanted: Wanted, download: Download) -> Path | None:
    """The cache also names folders whose download broke off."""
    try:
        folder = Path(download(name, allow_patterns=list(patterns), local_files_only=True))
    except OSError:
        return None
    return folder if wanted.is_whole(folder) else None


def snapshot_download(name: str, **options: object) -> str:
    import huggingface_hub

    return str(huggingface_hub.snapshot_download(name, **options))  # type: ignore[call-overload]

"""The native checkpoint: a folder with `config.json`, `tokenizer.json` and `model.safetensors`,
or in its place shards and their index, named as Hugging Face names them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..config import FlamingoConfig
from ..flamingo import Flamingo
from .checkpoint import Checkpoint
from .files import SINGLE, open_weights, weights_file
from .weights import CheckpointError
from .writing import StateDict, write_folder

__all__ = ["EMBEDDED", "CheckpointError", "load_native", "open_native", "save_native"]

EMBEDDED = Path(__file__).parents[1] / "training" / "emoji" / "checkpoint"


def open_native(folder: Path) -> Checkpoint:
    """Reads everything but the tensors themselves.

    Raises CheckpointError for a missing or damaged file and a config that does not parse.
    """
    weights = weights_file(folder)
    missing = [n for n in ("config.json", "tokenizer.json") if not (folder / n).is_file()]
    if missing := sorted([*missing, *([] if weights else [SINGLE])]):
        raise CheckpointError(f"{folder} is not a native checkpoint: it lacks {missing}")
    assert weights is not None
    config = load_config(folder / "config.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json", config)
    return Checkpoint(config, tokenizer, open_weights(weights), str(weights))


def load_native(
    folder: Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
) -> tuple[Flamingo, Tokenizer]:
    """The model, in evaluation mode and without gradients, and its tokenizer.

    Raises CheckpointError for a missing file, a config that does not parse, and any missing,
    leftover or wrongly shaped tensor.
    """
    checkpoint = open_native(folder)
    return checkpoint.load(device, dtype, quantize), checkpoint.tokenizer


def save_native(model: Flamingo, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """Writes the three files; tensors are stored as `dtype`."""
    checkpoint = Checkpoint(model.config, tokenizer, StateDict(model), str(folder))
    write_folder(checkpoint, folder, dtype)


def load_config(path: Path) -> FlamingoConfig:
    try:
        return FlamingoConfig.load(path)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_tokenizer(path: Path, config: FlamingoConfig) -> Tokenizer:
    tokenizer = read_tokenizer(path)
    check_tokenizer(tokenizer, config, path)
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{path}: {error}") from error
    tokenizer.no_truncation()  # a prompt is never cut or padded behind the client's back
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: FlamingoConfig, path: Path) -> None:
    """Raises CheckpointError unless the model has a row for each token, and the special ones."""
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    if lacking := [token for token in config.tokens.single() if token not in special]:
        raise CheckpointError(f"{path}: the tokenizer lacks the special tokens {lacking}")
    if max(tokenizer.get_vocab().values()) >= config.decoder.vocab_size:
        raise CheckpointError(f"{path}: more tokens than the decoder's {config.decoder.vocab_size}")

"""The native checkpoint: a folder with `config.json`, `model.safetensors`, `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ..config import FlamingoConfig
from ..flamingo import Flamingo
from .weights import CheckpointError, check, read_tensors

EMBEDDED = Path(__file__).parents[1] / "training" / "emoji" / "checkpoint"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def load_native(
    folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Flamingo, Tokenizer]:
    """The model, in evaluation mode and without gradients, and its tokenizer.

    Raises CheckpointError for a missing file, a config that does not parse, and any missing,
    leftover or wrongly shaped tensor.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} is not a native checkpoint: it lacks {missing}")
    config = load_config(folder / "config.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json", config)
    with torch.device("meta"):
        model = Flamingo(config)
    weights = load_weights(folder / "model.safetensors", model)
    weights = {k: v.to(device=device, dtype=dtype) for k, v in weights.items()}
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval().requires_grad_(False), tokenizer  # computed buffers move too


def save_native(model: Flamingo, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype) -> None:
    """Writes the three files; tensors are stored as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(model.config.to_json())
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": model.config.format})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private; others serve it too


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
    wanted = (config.tokens.image, config.tokens.end_of_chunk, config.tokens.end_of_text)
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    if lacking := [token for token in wanted if token not in special]:
        raise CheckpointError(f"{path}: the tokenizer lacks the special tokens {lacking}")
    if max(tokenizer.get_vocab().values()) >= config.decoder.vocab_size:
        raise CheckpointError(f"{path}: more tokens than the decoder's {config.decoder.vocab_size}")


def load_weights(path: Path, model: Flamingo) -> dict[str, torch.Tensor]:
    weights = read_tensors(path)
    check(weights, model, str(path))
    return weights

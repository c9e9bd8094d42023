"""What OpenFlamingo's and Otter's checkpoints stand on: a language model and its tokenizer.

The tokenizer gets the new tokens, and the vocabulary is cut or widened to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from ..config import DecoderConfig, SpecialTokens
from .files import open_model
from .key_map import KeyMap
from .language_models import decoder_config, decoder_weights, family
from .native import read_tokenizer
from .weights import CheckpointError

END_OF_CHUNK, IMAGE, PAD = "<|endofchunk|>", "<image>", "<PAD>"
MUTED = -1e4  # a logit nothing else falls below, and which half precision can hold

Weights = dict[str, Tensor]


def load_tokenizer(lm: Path) -> Tokenizer:
    """The language model's, with OpenFlamingo's tokens behind its own."""
    added = [END_OF_CHUNK, IMAGE] if has_pad_token(lm) else [END_OF_CHUNK, IMAGE, PAD]
    return tokenizer_with(lm, added)


def tokenizer_with(lm: Path, added: list[str]) -> Tokenizer:
    tokenizer = read_tokenizer(lm / "tokenizer.json")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in added])
    return tokenizer


def has_pad_token(lm: Path) -> bool:
    paths = (lm / "tokenizer_config.json", lm / "special_tokens_map.json")
    return any(read_json(path).get("pad_token") for path in paths if path.is_file())


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """As the reference generates: only the end of the chunk ends an answer."""
    begin = tokenizer.encode("").tokens
    return SpecialTokens(IMAGE, END_OF_CHUNK, END_OF_CHUNK, begin[0] if begin else None)


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not an object")
    return values


@dataclass(frozen=True)
class LanguageModel:
    """Its config says the tokenizer's size already; the rows of new tokens are zeros."""

    config: DecoderConfig
    keys: KeyMap
    weights: Weights
    num_known: int  # rows that came with the language model

    def with_head(self, trained: Weights) -> LanguageModel:
        """A head that nobody trained knows nothing of the new tokens: they are never chosen."""
        num_tokens = self.config.vocab_size
        is_whole = self.config.tie_embeddings or "decoder.head.weight" in trained
        if is_whole or self.num_known == num_tokens:
            return self
        known = self.weights.get("head.bias", torch.zeros(num_tokens))[: self.num_known]
        bias = torch.cat([known, known.new_full((num_tokens - self.num_known,), MUTED)])
        return replace(
            self,
            config=replace(self.config, head_bias=True),
            weights=self.weights | {"head.bias": bias},
        )


def read_language_model(folder: Path, num_tokens: int) -> LanguageModel:
    """Cut or widened to the tokenizer, as the reference's `resize_token_embeddings` does."""
    values = read_json(folder / "config.json")
    try:
        config = decoder_config(values)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    weights = decoder_weights(values, open_model(folder), str(folder))
    for name in {"embed.weight", "head.weight", "head.bias"} & weights.keys():
        weights[name] = resized(weights[name], num_tokens)
    return LanguageModel(
        config=replace(config, vocab_size=num_tokens),
        keys=family(values).keys,
        weights=weights,
        num_known=min(config.vocab_size, num_tokens),
    )


def resized(rows: Tensor, num: int) -> Tensor:
    lacking = rows.new_zeros(max(0, num - len(rows)), *rows.shape[1:])
    return torch.cat([rows[:num], lacking])

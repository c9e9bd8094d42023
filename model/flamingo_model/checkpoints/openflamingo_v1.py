"""OpenFlamingo's first version, on LLaMA: OpenFlamingo-9B-deprecated, Med-Flamingo, Multimodal-GPT.

`checkpoint.pt` (Med-Flamingo: `model.pt`) is what version 2 writes, with copies; Multimodal-GPT is
low-rank updates over such a file. None has rows in the head for the new tokens, so the model cannot
say `<|endofchunk|>`: see `never_said`. They were measured with the media rule `legacy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from ..config import SpecialTokens
from ..flamingo import Flamingo
from .beneath import MUTED, Weights, load_tokenizer, read_language_model, special_tokens
from .checkpoint import Checkpoint
from .clip import read_clip
from .files import open_file, read_torch
from .lazy import Recipes
from .lora import split_lora
from .openflamingo import Trained, flamingo_config, name_of, together
from .weights import CheckpointError

END_OF_SENTENCE = "</s>"  # LLaMA's; what training put behind every chunk's end
MULTIMODAL_GPT_ALPHA = 16.0


def open_openflamingo_v1(
    checkpoint: Path,
    lm: Path,
    vision: Path,
    interval: int,
    lora: Path | None = None,
) -> Checkpoint:
    """`lora` is Multimodal-GPT's file, merged into the weights as each is read.

    Raises CheckpointError for anything missing, left over or misshapen in any of the files.
    """
    tokenizer = load_tokenizer(lm)
    base = read_language_model(lm, tokenizer.get_vocab_size())
    tower, vision_weights = read_clip(vision)
    config = flamingo_config(
        name_of(lora or checkpoint), tower, base.config, interval, v1_tokens(tokenizer)
    )
    cross_attention = replace(config.cross_attention, media_rule="legacy")
    templates = "multimodal_gpt" if lora else config.templates
    config = replace(config, cross_attention=cross_attention, templates=templates)
    trained = Trained(config, base.keys).read(checkpoint)
    config, weights = together(config, base, vision_weights, trained)
    if lora:
        state, alpha = read_lora(lora)
        tune(weights, state, alpha, Tuned(config, base.keys), str(lora))
    return Checkpoint(config, tokenizer, Recipes(weights), str(checkpoint))


def v1_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """An answer may end as LLaMA ends one, since the end of the chunk is never said."""
    tokens = special_tokens(tokenizer)
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    can_end = END_OF_SENTENCE in special
    return replace(tokens, end_of_text=END_OF_SENTENCE) if can_end else tokens


def never_said(model: Flamingo) -> list[int]:
    """Ids that the model cannot choose: its head never learned them.

    Where `<|endofchunk|>` is among them an answer ends at `</s>`, at a text that the client gives
    to stop at, or at its longest. The reference leaves these logits to chance.
    """
    if not model.config.decoder.head_bias:
        return []
    muted: list[int] = (model.decoder.head.bias < MUTED / 2).nonzero().flatten().tolist()
    return muted


# ---- low-rank updates


class Tuned(Trained):
    """A file of changes: it need not hold anything."""

    def must_have(self, ours: str) -> bool:
        return False


def read_lora(path: Path) -> tuple[Weights, float]:
    """The tensors, and the alpha that training wrote beside them."""
    state, (saved, _) = open_file(path), read_torch(path)
    settings = saved.get("tuning_config") if isinstance(saved, dict) else None
    told = settings.get("lora_alpha") if isinstance(settings, dict) else None
    return state, float(told or MULTIMODAL_GPT_ALPHA)


def tune(
    weights: Weights, state: Mapping[str, Tensor], alpha: float, tuned: Tuned, where: str
) -> None:
    """Changes `weights`: whole tensors take the place of those before, low-rank ones are added."""
    plain, factors = split_lora(state)
    if not factors:
        raise CheckpointError(f"{where} holds no low-rank updates")
    weights |= tuned.fit(plain, where)
    tuned.merge(weights, factors, alpha, where)

"""Otter's checkpoints, for pictures and for films, on LLaMA, MPT-7B or MPT-1B.

A folder as Hugging Face saves it, with everything inside (OpenFlamingo in that form too), or a
`final_weights.pt` with what was trained, over the language model and the CLIP beneath. Updates by
low rank are merged. Otter's own code shows generated tokens no picture: the rule `last_in_prompt`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from ..config import FlamingoConfig
from .beneath import (
    END_OF_CHUNK,
    IMAGE,
    Weights,
    has_pad_token,
    read_json,
    read_language_model,
    special_tokens,
    tokenizer_with,
)
from .checkpoint import Checkpoint
from .clip import HARMLESS as CLIP_HARMLESS
from .clip import checked, hf_config, is_any, read_clip
from .files import open_file, open_model
from .key_map import KeyMap
from .language_models import FAMILIES, decoder_config, family
from .lazy import Recipes
from .lora import split_lora
from .openflamingo import Trained, flamingo_config, together
from .weights import CheckpointError, check_depth

ANSWER = "<answer>"
FRAMES = "perceiver.frame_embs"  # of films; [frames, dim]
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MPTForCausalLM": "mpt",
    "MptForCausalLM": "mpt",
    "MosaicGPT": "mosaic_gpt",
}
RESAMPLER_LAYER = {
    "norm_media": "norm_media",
    "norm_latents": "norm_latents",
    "to_q": "to_q",
    "to_kv": "to_kv",
    "to_out": "to_out",
    "feed_forward.0": "feed_forward.norm",
    "feed_forward.1": "feed_forward.up",
    "feed_forward.3": "feed_forward.down",
}
BLOCK = {
    "attn.norm": "norm",
    "attn.to_q": "to_q",
    "attn.to_kv": "to_kv",
    "attn.to_out": "to_out",
    "feed_forward.0": "feed_forward.norm",
    "feed_forward.1": "feed_forward.up",
    "feed_forward.3": "feed_forward.down",
}


def open_otter(folder: Path, lm: Path | None = None) -> Checkpoint:
    """A whole model. `lm` is a folder with the tokenizer, where its own has none.

    Raises CheckpointError for anything missing, left over or misshapen.
    """
    values = read_json(folder / "config.json")
    text = text_config(values, folder / "config.json")
    is_otter = values.get("model_type") != "flamingo"
    words = load_tokenizer(lm or folder, is_otter)
    plain, factors = split_lora(open_model(folder))
    keys = family(text).keys
    decoder = replace(decoder_config(text), vocab_size=num_rows(plain, keys, words, folder))
    config = otter_config(
        flamingo_config(
            name=folder.absolute().name,
            vision=checked(folder, hf_config),
            decoder=decoder,
            interval=number(values, "cross_attn_every_n_layers", 4),
            tokens=special_tokens(words),
        ),
        num_frames(plain) or number(values, "max_num_frames", 0),
    )
    if not is_otter:  # OpenFlamingo in Otter's form
        config = replace(config, templates="openflamingo")
    check_depth(max(config.decoder.num_layers, config.vision.num_layers), len(plain), str(folder))
    trained = WholeOtter(config, keys)
    weights = trained.fit(plain, str(folder))
    if factors:
        trained.merge(weights, factors, lora_alpha(values, folder), str(folder))
    return Checkpoint(config, words, Recipes(weights), str(folder))


def open_otter_weights(checkpoint: Path, lm: Path, vision: Path, interval: int) -> Checkpoint:
    """`final_weights.pt` over the folders of the language model and of the CLIP."""
    words, state = load_tokenizer(lm), open_file(checkpoint)
    values = read_json(lm / "config.json")
    if values.get("model_type") not in FAMILIES:
        raise CheckpointError(f"{lm}: model_type {values.get('model_type')!r} is not known")
    base = read_language_model(lm, num_rows(state, family(values).keys, words, checkpoint))
    tower, vision_weights = read_clip(vision)
    name = checkpoint.absolute().parent.name  # every such file is called final_weights.pt
    config = flamingo_config(name, tower, base.config, interval, special_tokens(words))
    config = otter_config(config, num_frames(state))
    trained = OtterTrained(config, base.keys).fit(state, str(checkpoint))
    config, weights = together(config, base, vision_weights, trained)
    return Checkpoint(config, words, Recipes(weights), str(checkpoint))


def load_tokenizer(folder: Path, is_otter: bool = True) -> Tokenizer:
    """The language model's with Otter's tokens. Padding, its last, has no row in every file."""
    pads = [] if is_otter or has_pad_token(folder) else ["<PAD>"]
    return tokenizer_with(folder, [END_OF_CHUNK, IMAGE, *([ANSWER] if is_otter else []), *pads])


def text_config(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The language model's; MPT's own code leaves its kind to `architectures`."""
    text = values.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(f"{path}: it has no text_config")
    kind = text.get("model_type")
    if kind not in FAMILIES:
        named = text.get("architectures") or [None]
        kind = ARCHITECTURES.get(named[0], kind)
    try:
        decoder_config(text := text | {"model_type": kind})
    except ValueError as error:
        raise CheckpointError(f"{path}: text_config: {error}") from error
    return text


def otter_config(config: FlamingoConfig, num_frames: int) -> FlamingoConfig:
    """OpenFlamingo's, with a place for each frame of a film, and pictures cut as CLIP's own are."""
    return replace(
        config,
        templates="otter",
        vision=replace(config.vision, transform="clip"),
        cross_attention=replace(config.cross_attention, media_rule="last_in_prompt"),
        resampler=replace(config.resampler, num_time_embeddings=num_frames),
    )


def num_rows(state: Mapping[str, Tensor], keys: KeyMap, words: Tokenizer, where: Path) -> int:
    """Of the embedding: Otter does not always cut it to its tokenizer."""
    embedding = keys.their_name("embed.weight")
    rows = [len(tensor) for name, tensor in state.items() if name.endswith(f".{embedding}")]
    needed = words.get_vocab_size()
    if rows and rows[0] < needed:
        raise CheckpointError(f"{where}: {embedding} has {rows[0]} rows for {needed} tokens")
    return rows[0] if rows else needed


def num_frames(state: Mapping[str, Tensor]) -> int:
    return next((len(tensor) for name, tensor in state.items() if name.endswith(FRAMES)), 0)


def number(values: Mapping[str, Any], key: str, default: int) -> int:
    value = values.get(key)
    if value is not None and not isinstance(value, int):
        raise CheckpointError(f"config.json: {key} {value!r} is not a number")
    return default if value is None else value


def lora_alpha(values: Mapping[str, Any], where: Path) -> float:
    settings = values.get("lora_config")
    alpha = settings.get("lora_alpha") if isinstance(settings, dict) else None
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"{where}: low-rank updates, and no lora_config.lora_alpha for them")
    return alpha


class OtterTrained(Trained):
    """`final_weights.pt`: OpenFlamingo's tensors under Otter's names."""

    resampler_layer, block_modules = RESAMPLER_LAYER, BLOCK

    def own_names(self) -> Iterator[tuple[str, str]]:
        yield from super().own_names()
        if self.config.resampler.num_time_embeddings:
            yield FRAMES, "resampler.time_embeddings"

    def shaped(self, name: str, tensor: Tensor) -> Tensor:
        """An embedding of a frame is for all its tokens."""
        if name == FRAMES and tensor.dim() == 2:
            return tensor.unsqueeze(1)  # [frames, 1, dim]
        return super().shaped(name, tensor)

    def vision(self, name: str, tensor: Tensor) -> Weights:
        plain = name.removeprefix("vision_encoder.")
        if is_any(plain, CLIP_HARMLESS):
            return {}
        if plain.startswith("vision_model."):
            return {f"vision.{plain.removeprefix('vision_model.')}": tensor}
        self.leftover.add(name)
        return {}

    def their_name(self, ours: str) -> str:
        if ours.startswith("vision."):
            return f"vision_encoder.vision_model.{ours.removeprefix('vision.')}"
        return super().their_name(ours)


class WholeOtter(OtterTrained):
    """Nothing lies beneath: the file has it all."""

    def must_have(self, ours: str) -> bool:
        return True

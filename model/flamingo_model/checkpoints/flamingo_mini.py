"""flamingo-mini and flamingo-tiny: all of the model but its picture tower, in one folder.

Beside it: the language model's config and tokenizer, and the CLIP that the pictures went through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from ..config import (
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    ResamplerConfig,
    SpecialTokens,
)
from ..vision_config import VisionConfig
from .beneath import read_json
from .checkpoint import Checkpoint, empty_model
from .clip import read_clip
from .files import open_model
from .key_map import KeyMap
from .language_models import decoder_config, family
from .lazy import Recipes
from .native import read_tokenizer
from .weights import CheckpointError, complain, mismatches

IMAGE, END_OF_CHUNK = "<image>", "<EOC>"
ACTIVATIONS = {"sqrelu": "squared_relu", "gelu": "gelu"}
SILENCE: dict[str, Any] = {
    "dim_visual": 768,
    "xattn_every": 1,
    "xattn_dim_head": 64,
    "xattn_heads": 8,
    "xattn_ff_mult": 4,
    "xattn_act": "gelu",
    "resampler_depth": 6,
    "resampler_dim_head": 64,
    "resampler_heads": 8,
    "resampler_num_latents": 64,
    "resampler_num_time_embeds": 4,
    "resampler_ff_mult": 4,
    "resampler_act": "gelu",
}
RESAMPLER_LAYER = {
    "norm_media": ("0.norm_media",),
    "norm_latents": ("0.norm_latents",),
    "to_q": ("0.to_q",),
    "to_kv": ("0.to_k", "0.to_v"),
    "to_out": ("0.to_out",),
    "feed_forward.norm": ("1.0",),
    "feed_forward.up": ("1.1",),
    "feed_forward.down": ("1.3",),
}
BLOCK = {
    "attn.norm": "norm",
    "attn.to_q": "to_q",
    "attn.to_kv": "to_kv",
    "attn.to_out": "to_out",
    "ffw.0": "feed_forward.norm",
    "ffw.1": "feed_forward.up",
    "ffw.3": "feed_forward.down",
}
GATES = {"alpha_attn": "attention_gate", "alpha_ffw": "feed_forward_gate"}
BEGIN = {"opt": "</s>", "gpt2": None}  # before every prompt, by the language model's model_type

Weights = dict[str, Tensor]


def open_flamingo_mini(
    folder: Path, lm: Path, vision: Path, tokenizer: Path | None = None
) -> Checkpoint:
    """`folder` is the checkpoint, `lm` the language model (its config.json, no weights) with its
    tokenizer, unless that lies elsewhere, `vision` the CLIP. Raises CheckpointError for anything
    missing, left over or misshapen.
    """
    values, language = read_json(folder / "config.json"), read_json(lm / "config.json")
    read = load_tokenizer(tokenizer or lm)
    theirs = open_model(folder)
    tower, vision_weights = read_clip(vision)
    try:
        config = flamingo_config(folder.absolute().name, values, language, tower)
        config = replace(config, decoder=with_head(config.decoder, theirs))
        config = replace(config, tokens=special_tokens(language, read))
        check_rows(read, config.decoder.vocab_size)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} with {lm}: {error}") from error
    expected = empty_model(config, len(theirs), str(folder)).state_dict()
    weights = Saved(config, family(language).keys, expected).read(theirs, str(folder))
    weights |= {f"vision.{k}": v for k, v in vision_weights.items()}
    return Checkpoint(config, read, Recipes(weights), str(folder))


# ---- configs


def flamingo_config(
    name: str, values: dict[str, Any], language: dict[str, Any], vision: VisionConfig
) -> FlamingoConfig:
    """The language model's vocabulary has one more row than its own config says: `<EOC>`."""
    values = SILENCE | values
    decoder = decoder_config(language)
    if language["model_type"] not in BEGIN:
        raise ValueError(f"flamingo-mini has no language model {language['model_type']!r}")
    if vision.dim != values["dim_visual"]:
        raise ValueError(f"dim_visual {values['dim_visual']} is not the CLIP's {vision.dim}")
    return FlamingoConfig(
        name=name,
        vision=replace(vision, keep_class_token=True, transform="clip"),
        resampler=ResamplerConfig(
            dim=vision.dim,
            num_latents=values["resampler_num_latents"],
            num_layers=values["resampler_depth"],
            num_heads=values["resampler_heads"],
            head_dim=values["resampler_dim_head"],
            ff_mult=values["resampler_ff_mult"],
            num_time_embeddings=values["resampler_num_time_embeds"],
            activation=activation(values, "resampler_act"),
        ),
        cross_attention=CrossAttentionConfig(
            interval=values["xattn_every"],
            num_heads=values["xattn_heads"],
            head_dim=values["xattn_dim_head"],
            ff_mult=values["xattn_ff_mult"],
            activation=activation(values, "xattn_act"),
            norm_media=False,
        ),
        decoder=replace(decoder, vocab_size=decoder.vocab_size + 1),
        templates="flamingo_mini",
    )


def activation(values: Mapping[str, Any], key: str) -> str:
    if (name := values[key]) not in ACTIVATIONS:
        raise ValueError(f"{key} {name!r} is not known; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def with_head(config: DecoderConfig, theirs: Mapping[str, Tensor]) -> DecoderConfig:
    """Their head starts as a copy of the embedding, and training may have parted the two."""
    head = theirs.get("flamingo.lm_head.weight")
    embeddings = (
        v for k, v in theirs.items() if k.endswith((".embed_tokens.weight", ".wte.weight"))
    )
    embedding = next(embeddings, head)
    is_copy = head is None or embedding is None or torch.equal(head, embedding)
    return replace(config, tie_embeddings=is_copy)


# ---- tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The language model's, with `<EOC>` behind its own tokens; `<image>` stays plain text."""
    path = folder / "tokenizer.json"
    try:
        is_whole = path.is_file() or not (folder / "vocab.json").is_file()
        tokenizer = read_tokenizer(path) if is_whole else from_vocabulary(folder)
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{path}: {error}") from error
    tokenizer.add_special_tokens([special(END_OF_CHUNK)])
    return tokenizer


def from_vocabulary(folder: Path) -> Tokenizer:
    """GPT-2's and OPT's byte-level merges in their first form; OPT's folders have no other."""
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = read_json(folder / "special_tokens_map.json")
    texts = [token["content"] if isinstance(token, dict) else token for token in named.values()]
    tokenizer.add_special_tokens(list(map(special, dict.fromkeys(texts))))
    return tokenizer


def special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def special_tokens(language: Mapping[str, Any], tokenizer: Tokenizer) -> SpecialTokens:
    """Their answers end where the language model's texts do; `<EOC>` stands right before that."""
    begin, end_id = BEGIN[language["model_type"]], language.get("eos_token_id")
    end = None if end_id is None else tokenizer.id_to_token(end_id)
    if end is None:
        raise ValueError(f"the tokenizer lacks eos_token_id {end_id}")
    return SpecialTokens(IMAGE, END_OF_CHUNK, end, begin, image_style="text")


def check_rows(tokenizer: Tokenizer, num_rows: int) -> None:
    if (highest := max(tokenizer.get_vocab().values())) >= num_rows:
        raise ValueError(f"the tokenizer has a token {highest}, the model {num_rows} rows")


# ---- weights


@dataclass(frozen=True)
class Origin:
    """Where a tensor of ours lies in the file: in one tensor, or in several put together."""

    names: tuple[str, ...]
    shape: torch.Size

    def expected(self) -> Weights:
        """Their gates have one element, ours no dimension."""
        rows, *others = self.shape or (1,)
        part = torch.empty(rows // len(self.names), *others, device="meta")
        return dict.fromkeys(self.names, part)

    def take(self, theirs: Mapping[str, Tensor]) -> Tensor:
        parts = [theirs[name] for name in self.names]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(self.shape)


class Saved:
    """The tensors of a checkpoint under our names."""

    def __init__(
        self, config: FlamingoConfig, keys: KeyMap, expected: Mapping[str, Tensor]
    ) -> None:
        self.config, self.keys = config, within(keys)
        self.shapes = {k: v.shape for k, v in expected.items()}
        self.origins = {
            ours: Origin(names, self.shapes[ours])
            for ours, names in self.added()
            if ours in self.shapes
        }

    def read(self, theirs: Mapping[str, Tensor], where: str) -> Weights:
        """Raises CheckpointError naming what is missing, left over or misshapen."""
        expected = {k: v for origin in self.origins.values() for k, v in origin.expected().items()}
        added = {k: v for k, v in theirs.items() if k in expected}
        language = {k: v for k, v in theirs.items() if k not in expected}
        found = self.keys.translate(language, self.config.decoder)
        wanted = {k.removeprefix("decoder."): v for k, v in self.shapes.items() if is_language(k)}
        problems = mismatches(added, expected)
        problems["missing"] |= {self.file_name(k) for k in wanted.keys() - found.ours.keys()}
        problems["leftover"] |= found.leftover
        problems["leftover"] |= {found.sources[k] for k in found.ours.keys() - wanted.keys()}
        problems["wrongly shaped"] |= found.misfits | {
            f"{found.sources[k]}: {k} {list(found.ours[k].shape)} for {list(wanted[k])}"
            for k in wanted.keys() & found.ours.keys()
            if found.ours[k].shape != wanted[k]
        }
        problems["one tensor with two values"] = found.conflicts
        complain(where, problems)
        ours = {name: origin.take(added) for name, origin in self.origins.items()}
        return ours | {f"decoder.{k}": v for k, v in found.ours.items()}

    def added(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Ours ← theirs, of all that is not the language model's; some of ours may not exist."""
        yield "resampler.latents", ("flamingo.resampler.latents",)
        yield "resampler.time_embeddings", ("flamingo.resampler.time_pos_emb",)
        yield from tensors("resampler.norm", "flamingo.resampler.norm")
        for index in range(self.config.resampler.num_layers):
            prefix = f"layers.{index}"
            for ours, theirs in RESAMPLER_LAYER.items():
                sources = (f"flamingo.resampler.{prefix}.{name}" for name in theirs)
                yield from tensors(f"resampler.{prefix}.{ours}", *sources)
        has_block = self.config.cross_attention.has_block
        blocks = filter(has_block, range(self.config.decoder.num_layers))
        for index, layer in enumerate(blocks):
            place = f"{self.keys.base}{self.keys.layers}.{layer}.xattn_block"
            yield from block(f"cross_attention.{index}", place)

    def file_name(self, ours: str) -> str:
        """A layer that cross-attention was put before lies one module deeper."""
        name = self.keys.their_name(ours)
        layers = f"{self.keys.base}{self.keys.layers}."
        if not name.startswith(layers):
            return name
        number, _, rest = name.removeprefix(layers).partition(".")
        deeper = "lm_block." if self.config.cross_attention.has_block(int(number)) else ""
        return f"{layers}{number}.{deeper}{rest}"


def block(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, gate in GATES.items():
        yield f"{ours}.{gate}", (f"{theirs}.{name}",)
    for name, module in BLOCK.items():
        yield from tensors(f"{ours}.{module}", f"{theirs}.{name}")


def tensors(ours: str, *theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs)


def is_language(ours: str) -> bool:
    return ours.startswith("decoder.")


def within(keys: KeyMap) -> KeyMap:
    """The names of a language model inside their file."""
    top = {name: into for name, into in keys.top.items() if name != "lm_head"}
    return replace(
        keys,
        base="flamingo.lm.",
        top=top | {"flamingo.lm_head": keys.top["lm_head"]},
        layer={**keys.layer, **{f"lm_block.{name}": into for name, into in keys.layer.items()}},
        harmless=tuple(p.replace(r"\d+\.", r"\d+\.(lm_block\.)?") for p in keys.harmless),
    )

"""OpenFlamingo's `checkpoint.pt`, which holds only what was trained, over the models it was put on.

The file as released (flat), as its training writes it (`model_state_dict`, `module.`), with the
copies that version 1 kept, and as a dump of the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import (
    CrossAttentionConfig,
    DecoderConfig,
    FlamingoConfig,
    ResamplerConfig,
    SpecialTokens,
)
from ..flamingo import Flamingo
from ..vision_config import VisionConfig
from .beneath import LanguageModel, Weights, load_tokenizer, read_language_model, special_tokens
from .checkpoint import Checkpoint
from .clip import OPEN_CLIP_HARMLESS, from_open_clip, is_any, read_clip
from .files import open_file
from .hollow import hollow
from .key_map import KeyMap, Translation
from .lazy import Recipes
from .lora import merge_lora
from .weights import CheckpointError, complain, mismatches

RESAMPLER_LAYER = {
    "0.norm_media": "norm_media",
    "0.norm_latents": "norm_latents",
    "0.to_q": "to_q",
    "0.to_kv": "to_kv",
    "0.to_out": "to_out",
    "1.0": "feed_forward.norm",
    "1.1": "feed_forward.up",
    "1.3": "feed_forward.down",
}
BLOCK = {
    "attn.norm": "norm",
    "attn.to_q": "to_q",
    "attn.to_kv": "to_kv",
    "attn.to_out": "to_out",
    "ff.0": "feed_forward.norm",
    "ff.1": "feed_forward.up",
    "ff.3": "feed_forward.down",
}
HARMLESS = (r"(vision_model\.)?embeddings\.position_ids",)  # of the vision encoder
COPIES = {"old_decoder_blocks": "", "gated_cross_attn_layers": "gated_cross_attn_layer."}
GATES = {"attn_gate": "attention_gate", "ff_gate": "feed_forward_gate"}


def open_openflamingo(checkpoint: Path, lm: Path, vision: Path, interval: int) -> Checkpoint:
    """`lm` and `vision` are folders with the language model and the CLIP that the checkpoint was
    trained on, `interval` is its `cross_attn_every_n_layers`. Raises CheckpointError for anything
    missing, left over or misshapen.
    """
    tokenizer = load_tokenizer(lm)
    base = read_language_model(lm, tokenizer.get_vocab_size())
    tower, vision_weights = read_clip(vision)
    tokens = special_tokens(tokenizer)
    config = flamingo_config(name_of(checkpoint), tower, base.config, interval, tokens)
    trained = Trained(config, base.keys).read(checkpoint)
    config, weights = together(config, base, vision_weights, trained)
    return Checkpoint(config, tokenizer, Recipes(weights), str(checkpoint))


def together(
    config: FlamingoConfig, base: LanguageModel, vision: Weights, trained: Weights
) -> tuple[FlamingoConfig, Weights]:
    """The models beneath, and over them what was trained."""
    decoder = base.with_head(trained)
    weights = {f"vision.{k}": v for k, v in vision.items()}
    weights |= {f"decoder.{k}": v for k, v in decoder.weights.items()} | trained
    return replace(config, decoder=decoder.config), weights


def flamingo_config(
    name: str, vision: VisionConfig, decoder: DecoderConfig, interval: int, tokens: SpecialTokens
) -> FlamingoConfig:
    """What OpenFlamingo writes into its code is written here."""
    if not 1 <= interval <= decoder.num_layers:
        raise CheckpointError(
            f"the cross-attention interval {interval} is not between 1 and the language model's "
            f"{decoder.num_layers} layers"
        )
    sizes: dict[str, Any] = {"num_heads": 8, "head_dim": 64, "ff_mult": 4, "activation": "gelu"}
    return FlamingoConfig(
        name=name,
        vision=replace(vision, transform="clip_resize_then_rgb"),
        resampler=ResamplerConfig(
            vision.dim, num_latents=64, num_layers=6, num_time_embeddings=0, **sizes
        ),
        cross_attention=CrossAttentionConfig(interval, norm_media=False, placement="last", **sizes),
        decoder=decoder,
        tokens=tokens,
        templates="openflamingo",
    )


def name_of(checkpoint: Path) -> str:
    """Every released file is called checkpoint.pt or model.pt; its folder tells them apart."""
    path = checkpoint.absolute()  # a link keeps its own name, not that of what it points to
    return path.parent.name if path.stem in ("checkpoint", "model") else path.stem


class Trained:
    """The tensors of a `checkpoint.pt` under our names, and what is wrong with them."""

    resampler_layer, block_modules = RESAMPLER_LAYER, BLOCK  # theirs → ours

    def __init__(self, config: FlamingoConfig, keys: KeyMap) -> None:
        self.config, self.keys = config, keys
        self.layers = f"lang_encoder.{keys.base}{keys.layers}"
        with hollow():
            self.expected = Flamingo(config).state_dict()
        self.names = dict(self.own_names())
        self.theirs = {ours: name for name, ours in self.names.items()}
        self.sources = dict[str, str]()
        self.conflicts, self.leftover = set[str](), set[str]()

    def read(self, checkpoint: Path) -> Weights:
        return self.fit(open_file(checkpoint), str(checkpoint))

    def fit(self, state: Mapping[str, Tensor], where: str) -> Weights:
        """Raises CheckpointError for what is missing, left over or misshapen."""
        ours, language = self.translate(self.one_of_each(state))
        time = self.expected["resampler.time_embeddings"]
        if not len(time):
            ours["resampler.time_embeddings"] = torch.zeros(time.shape)  # none, and in no file
        interval = self.config.cross_attention.interval
        what = f"the language model with cross-attention every {interval} layers"
        complain(where, self.problems(ours, language), what)
        return ours

    def translate(self, theirs: Mapping[str, Tensor]) -> tuple[Weights, Translation]:
        """Tensors under their short names: all of ours, and how the language model's fared."""
        ours, rest = dict[str, Tensor](), dict[str, Tensor]()
        for name, tensor in theirs.items():
            if name in self.names:
                ours[self.names[name]] = self.shaped(name, tensor)
            elif name.startswith("vision_encoder."):
                ours |= self.vision(name, tensor)
            else:
                rest[name.removeprefix("lang_encoder.")] = tensor
        language = self.keys.translate(rest, self.config.decoder)
        return ours | {f"decoder.{k}": v for k, v in language.ours.items()}, language

    def shaped(self, name: str, tensor: Tensor) -> Tensor:
        """Their gates have one element, ours no dimension."""
        is_gate = name.endswith("_gate") and tensor.shape == (1,)
        return tensor.squeeze(0) if is_gate else tensor

    def must_have(self, ours: str) -> bool:
        """The vision tower and the language model's layers come from elsewhere."""
        return ours.startswith(("resampler.", "cross_attention.", "decoder.embed."))

    def merge(
        self, weights: Weights, factors: Mapping[str, Tensor], alpha: float, where: str
    ) -> None:
        """Changes `weights` by low-rank updates; see lora.py."""
        short = self.one_of_each(factors)
        complain(where, {"one tensor with two values": self.conflicts}, "itself")
        merge_lora(weights, short, alpha, lambda k, v: self.translate({k: v})[0], where)

    def vision(self, name: str, tensor: Tensor) -> Weights:
        """Only a dump of the whole model has it, as open_clip names it."""
        plain = name.removeprefix("vision_encoder.")
        if is_any(f"visual.{plain}", OPEN_CLIP_HARMLESS) or is_any(plain, HARMLESS):
            return {}
        found = {f"vision.{k}": v for k, v in from_open_clip(plain, tensor).items()}
        if not found:
            self.leftover.add(name)
        return found

    def problems(self, ours: Weights, language: Translation) -> dict[str, set[str]]:
        """With the names of the file, wherever it has one."""
        wanted = {k: v for k, v in self.expected.items() if k in ours or self.must_have(k)}
        wrong = mismatches(
            {self.their_name(k): v for k, v in ours.items()},
            {self.their_name(k): v for k, v in wanted.items()},
        )
        wrong["leftover"] |= self.leftover | {self.source(name) for name in language.leftover}
        wrong["wrongly shaped"] |= language.misfits
        wrong["one tensor with two values"] = self.conflicts | language.conflicts
        return wrong

    def own_names(self) -> Iterator[tuple[str, str]]:
        """Theirs → ours, of all that OpenFlamingo added to the language model."""
        yield "perceiver.latents", "resampler.latents"
        yield from self.tensors("perceiver.norm", "resampler.norm")
        for index in range(self.config.resampler.num_layers):
            for theirs, ours in self.resampler_layer.items():
                prefix = f"layers.{index}"
                yield from self.tensors(
                    f"perceiver.{prefix}.{theirs}", f"resampler.{prefix}.{ours}"
                )
        has_block = self.config.cross_attention.has_block
        blocks = filter(has_block, range(self.config.decoder.num_layers))
        for index, layer in enumerate(blocks):
            yield from self.block(f"{self.layers}.{layer}.gated_cross_attn_layer", index)

    def block(self, prefix: str, index: int) -> Iterator[tuple[str, str]]:
        for theirs, ours in GATES.items():
            yield f"{prefix}.{theirs}", f"cross_attention.{index}.{ours}"
        for theirs, ours in self.block_modules.items():
            yield from self.tensors(f"{prefix}.{theirs}", f"cross_attention.{index}.{ours}")

    def tensors(self, theirs: str, ours: str) -> Iterator[tuple[str, str]]:
        """The weight of a module and, where it has one, the bias."""
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in self.expected:
                yield f"{theirs}.{kind}", f"{ours}.{kind}"

    def one_of_each(self, theirs: Mapping[str, Tensor]) -> Weights:
        """A live model reaches a tensor by up to three names; copies must agree."""
        found: Weights = {}
        for name, tensor in theirs.items():
            short = self.short(name)
            if short in found and not torch.equal(found[short], tensor):
                self.conflicts.add(f"{self.sources[short]} and {name}")
            found[short], self.sources[short] = tensor, name
        return found

    def short(self, name: str) -> str:
        """Without what distributed training (`module.`), peft and the lists put into names."""
        name = name.removeprefix("module.").replace(".base_layer.", ".", 1)
        name = name.replace("lang_encoder.base_model.model.", "lang_encoder.", 1)
        for copies, place in COPIES.items():
            if match := re.fullmatch(rf"lang_encoder\.{copies}\.(\d+)\.(.+)", name):
                return f"{self.layers}.{match[1]}.{place}{match[2]}"
        return name.replace(".decoder_layer.", ".", 1)

    def their_name(self, ours: str) -> str:
        if ours in self.theirs:
            return self.theirs[ours]
        room, _, name = ours.partition(".")
        return f"lang_encoder.{self.keys.their_name(name)}" if room == "decoder" else ours

    def source(self, plain: str) -> str:
        return self.sources.get(f"lang_encoder.{plain}") or self.sources[plain]

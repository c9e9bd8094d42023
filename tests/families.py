"""A tiny checkpoint of every family on disk, as it is published, and how it is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flamingo_model.checkpoints.checkpoint import Checkpoint
from flamingo_model.checkpoints.families import Parts
from flamingo_model.checkpoints.opening import open_checkpoint
from flamingo_model.flamingo import Flamingo
from golden_sets import GOLDEN
from published import (
    CLIP,
    LLAMA,
    MPT,
    MPT_1B,
    OPEN_FLAMINGO,
    OTTER,
    TOP,
    Style,
    Weights,
    added,
    language,
    source,
    tower,
    wrapped,
    write_clip,
    write_lm,
    write_tokenizer,
)
from tiny import save_tiny

INTERVAL = 2


@dataclass(frozen=True)
class Case:
    """`model` is what it was written from, where that is one of ours."""

    source: Path
    family: str = "auto"
    parts: Parts = Parts()
    model: Flamingo | None = None

    def open(self) -> Checkpoint:
        return open_checkpoint(self.source, self.family, self.parts)


def golden(name: str, interval: int) -> Case:
    folder = GOLDEN / name
    parts = Parts(str(folder / "lm"), str(CLIP), interval)
    return Case(folder / "checkpoint.pt", "openflamingo", parts)


def flamingo_mini() -> Case:
    folder = GOLDEN / "fm_opt"
    parts = Parts(str(folder / "lm"), str(folder / "clip"))
    return Case(folder / "model", "flamingo-mini", parts)


def trained_only(
    folder: Path,
    text: dict[str, Any],
    family: str = "openflamingo",
    style: Style = OPEN_FLAMINGO,
    num_added: int = 3,
) -> Case:
    """One file with what was trained, over a language model and a CLIP."""
    kind, num_known = text["model_type"], write_tokenizer(folder / "lm")
    model = source(text, INTERVAL, num_known + num_added)
    beneath = language(model, kind)
    trained = added(model, kind, style, INTERVAL)
    embedding = f"{TOP[kind]['embed']}.weight"
    trained[f"lang_encoder.{embedding}"] = beneath[embedding]
    for name in {embedding, "lm_head.weight"} & beneath.keys():
        beneath[name] = beneath[name][:num_known].clone()
    lm = write_lm(folder / "lm", text, beneath, num_known)
    clip = write_clip(folder / "clip", model)
    torch.save(trained, folder / "checkpoint.pt")
    parts = Parts(str(lm), str(clip), INTERVAL)
    return Case(folder / "checkpoint.pt", family, parts, model)


def multimodal_gpt(folder: Path, text: dict[str, Any] = LLAMA, rank: int = 4) -> Case:
    """Low-rank updates over OpenFlamingo's first version."""
    case = trained_only(folder, text, "openflamingo-v1")
    assert case.model is not None
    factors: Weights = {}
    for name, tensor in wrapped(language(case.model, "llama"), "llama").items():
        if name.endswith(("q_proj.weight", "o_proj.weight")):
            module = name.removesuffix(".weight").replace("lang_encoder.", PEFT)
            factors[f"{module}.lora_A.default.weight"] = torch.randn(rank, tensor.shape[1]) / 8
            factors[f"{module}.lora_B.default.weight"] = torch.randn(len(tensor), rank) / 8
    torch.save({"model_state_dict": factors}, folder / "lora.pt")
    parts = replace(case.parts, lora=str(folder / "lora.pt"))
    return Case(case.source, case.family, parts)


PEFT = "lang_encoder.base_model.model."


def otter(folder: Path, text: dict[str, Any] = MPT, num_shards: int = 2) -> Case:
    """A folder with everything, in shards of torch's."""
    kind, num_rows = text["model_type"], write_tokenizer(folder) + 3
    model = source(text, INTERVAL, num_rows)
    state = added(model, kind, OTTER, INTERVAL) | wrapped(language(model, kind), kind)
    state |= {f"vision_encoder.{name}": tensor for name, tensor in tower(model).items()}
    values = {
        "model_type": "otter",
        "cross_attn_every_n_layers": INTERVAL,
        "vision_config": json.loads((CLIP / "config.json").read_text()),
        "text_config": text | {"vocab_size": num_rows},
    }
    (folder / "config.json").write_text(json.dumps(values))
    names = sorted(state)
    shards = {f"pytorch_model-{i}.bin": names[i::num_shards] for i in range(num_shards)}
    for shard, own in shards.items():
        torch.save({name: state[name] for name in own}, folder / shard)
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return Case(folder, model=model)


CASES: dict[str, Callable[[Path], Case]] = {
    "native": lambda folder: Case(save_tiny(folder)),
    "idefics": lambda folder: Case(GOLDEN / "idefics_qkln"),
    "openflamingo on OPT": lambda folder: golden("of_opt_x1", 1),
    "openflamingo on MPT": lambda folder: golden("of_mpt_x2", 2),
    "openflamingo on NeoX": lambda folder: golden("of_neox_x2", 2),
    "openflamingo on MPT-1B": lambda folder: trained_only(folder, MPT_1B),
    "openflamingo-v1": lambda folder: trained_only(folder, LLAMA, "openflamingo-v1"),
    "multimodal-gpt": multimodal_gpt,
    "otter": otter,
    "otter-weights": lambda f: trained_only(f, LLAMA, "otter-weights", OTTER, num_added=4),
    "flamingo-mini": lambda folder: flamingo_mini(),
}

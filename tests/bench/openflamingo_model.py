"""OpenFlamingo with random weights in the shape of OPT-125m and ViT-B/16, built by its own factory.

Runs in the environment of `make peers`. What it saves is what a user of OpenFlamingo has: the
folder of a language model, that of a CLIP, and a checkpoint.pt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_flamingo import create_model_and_transforms
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from bench.vocabulary import SIZE, SPECIAL, merges, vocabulary

TOWER, INTERVAL, GATE = "ViT-B-16", 1, 0.5
VERSION = 1  # of what is saved: a folder of another one is written again
COPIES = ("lang_encoder.old_decoder_blocks.", "lang_encoder.gated_cross_attn_layers.")
TRAINED = ("perceiver.", ".gated_cross_attn_layer.", "embed_")


@dataclass(frozen=True)
class Network:
    model: Any
    image_processor: Any
    tokenizer: PreTrainedTokenizerFast


def build(folder: Path) -> Network:
    """The same network every time, in evaluation mode; and in `folder`, for our loader."""
    saved = folder / "saved.json"
    is_saved = saved.is_file() and json.loads(saved.read_text()) == stamp()
    if not is_saved:
        saved.unlink(missing_ok=True)
        save_language_model(folder / "lm")
    torch.manual_seed(1)
    model, image_processor, tokenizer = create_model_and_transforms(
        TOWER, "", str(folder / "lm"), str(folder / "lm"), INTERVAL, use_local_files=True
    )
    open_gates(model)
    model.eval()
    if not is_saved:
        save_tower(model, folder / "vision")
        torch.save(trained(model), folder / "checkpoint.pt")
        saved.write_text(json.dumps(stamp()))
    return Network(model, image_processor, tokenizer)


def stamp() -> dict[str, Any]:
    return {"version": VERSION, "torch": torch.__version__, "vocabulary": SIZE, "gate": GATE}


def save_language_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=SIZE, hidden_size=768, num_hidden_layers=12, ffn_dim=3072, num_attention_heads=12
    )
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """As OPT's: `</s>` begins every text."""
    built = Tokenizer(models.BPE(vocab=vocabulary(), merges=merges()))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    end = SPECIAL.index("</s>")
    built.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", end)]
    )
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=built, **names)


def open_gates(model: Any) -> None:
    """They begin at 0: the pictures would not be seen."""
    for layer in model.lang_encoder.gated_cross_attn_layers:
        layer.attn_gate.data.fill_(GATE)
        layer.ff_gate.data.fill_(GATE)


def trained(model: Any) -> dict[str, Tensor]:
    """What OpenFlamingo releases: its own layers and the embeddings, each under one name."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if any(part in name for part in TRAINED)
        and not name.startswith(("vision_encoder.", *COPIES))
    }


def save_tower(model: Any, folder: Path) -> None:
    """As open_clip's own files, without the half that reads text."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"visual.{name}": x for name, x in model.vision_encoder.state_dict().items()}
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    (folder / f"{TOWER}.json").write_text(json.dumps(open_clip.get_model_config(TOWER)))

"""What smaller types and quantisation change in every family: logits against float32.

`python tests/bench/agreement.py [EVERY]` asks the shipped checkpoint every EVERY-th prompt of its
exam, and each recorded checkpoint its recorded prompts. All read float32's own greedy answer and
are compared at each of its tokens. The recorded ones are tiny and random, with the smallest of
differences between their best tokens: a trained model agrees more often.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor

from exam import DATA
from families import Case, flamingo_mini, golden
from flamingo_model.attention import DenseCrossAttention, no_media
from flamingo_model.checkpoints.checkpoint import Checkpoint
from flamingo_model.config import FlamingoConfig
from flamingo_model.cross_attention import CrossAttend, media_mask
from flamingo_model.flamingo import Flamingo
from flamingo_model.media import to_pixels
from flamingo_model.prompt import MediaPart, TextPart, build_renderer
from flamingo_model.quantize import num_bytes
from forward import run
from golden_sets import GOLDEN

OTHERS = [(q, t) for q in (None, "int8", "nf4") for t in (torch.float32, torch.bfloat16)][1:]
LONGEST = 4  # tokens of an answer in the exam
RECORDED = {
    "of_opt_x1": golden("of_opt_x1", 1),
    "of_mpt_x2": golden("of_mpt_x2", 2),
    "of_neox_x2": golden("of_neox_x2", 2),
    "idefics_qkln": Case(GOLDEN / "idefics_qkln"),
    "fm_opt": flamingo_mini(),
}


@dataclass(frozen=True)
class Asked:
    """A prompt and its answer, `begin` tokens in; pixels [M, T, 3, H, W]."""

    ids: list[int]
    begin: int
    pixels: Tensor


@dataclass(frozen=True)
class Found:
    """`size` of the weights in bytes; the rest over all tokens of all answers."""

    name: str
    size: int
    furthest: float
    num_same: int
    num_asked: int


# ---- prompts


def exam(opened: Checkpoint, every: int) -> Iterator[tuple[list[int], Tensor]]:
    """Token ids, and pixels."""
    transform = opened.config.vision.pixel_transform()
    renderer = build_renderer(opened.tokenizer, opened.config)
    with zipfile.ZipFile(DATA) as archive:
        for prompt in json.loads(archive.read("prompts.json"))[::every]:
            files = [part["image"] for part in prompt["parts"] if "image" in part]
            pictures = [Image.open(io.BytesIO(archive.read(file))).convert("RGB") for file in files]
            pixels = np.stack([to_pixels(picture, transform) for picture in pictures])[:, None]
            parts = [
                MediaPart() if "image" in part else TextPart(part["text"], True)
                for part in prompt["parts"]
            ]
            yield renderer.render(parts).token_ids, torch.from_numpy(transform.normalise(pixels))


def answered(
    model: Flamingo, tokenizer: Tokenizer, prompts: Iterator[tuple[list[int], Tensor]]
) -> Iterator[Asked]:
    stop = tokenizer.token_to_id(model.config.tokens.end_of_chunk)
    for prompt, pixels in prompts:
        ids = list(prompt)
        while ids[-1] != stop and len(ids) < len(prompt) + LONGEST:
            asked = Asked(ids, len(prompt), pixels)
            ids = [*ids, int(logits(model, tokenizer, asked)[-1].argmax())]
        yield Asked(ids, len(prompt), pixels)


def recorded(folder: Path, opened: Checkpoint) -> Iterator[Asked]:
    """Prompts without their batch's padding, and what the reference answered in float32."""
    media = build_renderer(opened.tokenizer, opened.config).marks.media
    size = opened.config.vision.image_size
    stop = opened.tokenizer.token_to_id(opened.config.tokens.end_of_chunk)
    for path in sorted((folder / "golden").glob("*.npz")):
        arrays = np.load(path)
        if "greedy_sequences" not in arrays:
            continue
        for row, mask in enumerate(arrays["attention_mask"].astype(bool)):
            prompt = arrays["input_ids"][row][mask].tolist()
            new = arrays["greedy_sequences"][row][len(mask) :].tolist()
            new = new[: new.index(stop) + 1] if stop in new else new
            pixels = next((arrays[k][row] for k in ("vision_x", "pixel_values") if k in arrays), [])
            shaped = torch.as_tensor(pixels).reshape(-1, 1, 3, size, size)
            num_media = sum(i in media for i in prompt)
            yield Asked([*prompt, *new], len(prompt), shaped[:num_media])


# ---- comparing


@torch.inference_mode()
def logits(model: Flamingo, tokenizer: Tokenizer, asked: Asked) -> Tensor:
    """[T, vocab]"""
    return run(model, asked.ids, look(model, tokenizer, asked))


def look(model: Flamingo, tokenizer: Tokenizer, asked: Asked) -> CrossAttend:
    if not len(asked.pixels):
        return no_media
    latents = model.encode_media(asked.pixels.to(model.decoder.embed.weight.dtype))
    index = seen(model.config, tokenizer, asked)
    mask = media_mask(torch.tensor([index]), len(asked.pixels))
    return DenseCrossAttention(model.project_media(latents.unsqueeze(0)), mask)


def seen(config: FlamingoConfig, tokenizer: Tokenizer, asked: Asked) -> list[int]:
    renderer = build_renderer(tokenizer, config)
    index = renderer.rule.prompt(asked.ids[: asked.begin], renderer.marks)
    return index + [renderer.rule.generated(index)] * (len(asked.ids) - asked.begin)


def compare(opened: Checkpoint, asked: list[Asked], exact: list[Tensor]) -> Iterator[Found]:
    for quantize, dtype in OTHERS:
        model = opened.load(dtype=dtype, quantize=quantize)
        same, furthest = list[bool](), 0.0
        for one, expected in zip(asked, exact, strict=True):
            found = logits(model, opened.tokenizer, one)
            furthest = max(furthest, float((found - expected).abs().max()))
            same += (found.argmax(-1) == expected.argmax(-1))[one.begin - 1 : -1].tolist()
        name = f"{quantize or 'none'} {str(dtype).removeprefix('torch.')}"
        yield Found(name, num_bytes(model), furthest, sum(same), len(same))


def add(table: Table, name: str, opened: Checkpoint, asked: list[Asked], exact: Flamingo) -> None:
    expected = [logits(exact, opened.tokenizer, one) for one in asked]
    spread = float(torch.cat(expected).std())
    for found in compare(opened, asked, expected):
        table.add_row(
            name,
            found.name,
            f"{found.size / 2**20:.1f}",
            f"{found.furthest:.3f}",
            f"{found.furthest / spread:.2f}",
            f"{found.num_same / found.num_asked:.1%}",
            f"{found.num_same}/{found.num_asked}",
        )
    table.add_section()


def main(every: int) -> None:
    torch.set_num_threads(1)
    table = Table(title="Against float32, on a CPU")
    for name in ("checkpoint", "bits and type"):
        table.add_column(name)
    for name in ("MiB", "furthest logit", "in their spread", "same best token", "of"):
        table.add_column(name, justify="right")
    shipped = Case(Path("embedded")).open()
    exact = shipped.load()
    asked = list(answered(exact, shipped.tokenizer, exam(shipped, every)))
    add(table, "embedded", shipped, asked, exact)
    for name, case in RECORDED.items():
        opened = case.open()
        add(table, name, opened, list(recorded(GOLDEN / name, opened)), opened.load())
    Console(width=100).print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)

"""What smaller types and quantisation change: logits against float32 on the shipped checkpoint.

`python tests/bench/agreement.py [EVERY]` asks every EVERY-th prompt of the exam. All read float32's
own greedy answer, and are compared at each of its tokens.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exam import DATA
from flamingo_model.attention import DenseCrossAttention, DenseSelfAttention
from flamingo_model.checkpoints.native import EMBEDDED, load_native
from flamingo_model.cross_attention import media_mask, visible_media
from flamingo_model.flamingo import Flamingo
from flamingo_model.media import to_pixels
from flamingo_model.prompt import MediaPart, PromptRenderer, TextPart
from flamingo_model.quantize import num_bytes

EXACT, TOKENIZER = load_native(EMBEDDED)
CONFIG = EXACT.config
RENDERER = PromptRenderer(TOKENIZER, CONFIG.tokens)
STOP = TOKENIZER.token_to_id(CONFIG.tokens.end_of_chunk)
OTHERS = [(q, t) for q in (None, "int8", "nf4") for t in (torch.float32, torch.bfloat16)][1:]
LONGEST = 4


def prompts(every: int) -> Iterator[tuple[list[int], Tensor]]:
    """Token ids, and pixels [M, 1, 3, H, W]."""
    transform = CONFIG.vision.pixel_transform()
    with zipfile.ZipFile(DATA) as archive:
        for prompt in json.loads(archive.read("prompts.json"))[::every]:
            files = [part["image"] for part in prompt["parts"] if "image" in part]
            opened = [Image.open(io.BytesIO(archive.read(file))).convert("RGB") for file in files]
            pixels = np.stack([to_pixels(picture, transform) for picture in opened])[:, None]
            parts = [
                MediaPart() if "image" in part else TextPart(part["text"], True)
                for part in prompt["parts"]
            ]
            yield RENDERER.render(parts).token_ids, torch.from_numpy(transform.normalise(pixels))


@torch.inference_mode()
def logits(model: Flamingo, ids: list[int], pixels: Tensor) -> Tensor:
    """[T, vocab]"""
    latents = model.encode_media(pixels.to(model.decoder.embed.weight.dtype))
    media = model.project_media(latents.unsqueeze(0))
    index = torch.tensor([visible_media(ids, RENDERER.image_token_id)])
    hidden = model(
        torch.tensor([ids]),
        torch.arange(len(ids)).unsqueeze(0),
        DenseSelfAttention(1, len(ids)),
        DenseCrossAttention(media, media_mask(index, len(pixels))),
    )
    return model.logits(hidden)[0]


def answered(ids: list[int], pixels: Tensor) -> list[int]:
    """The ids and float32's greedy answer to them."""
    for _ in range(LONGEST):
        ids = [*ids, int(logits(EXACT, ids, pixels)[-1].argmax())]
        if ids[-1] == STOP:
            break
    return ids


def main(every: int) -> None:
    torch.set_num_threads(1)
    asked = [(len(ids), answered(ids, pixels), pixels) for ids, pixels in prompts(every)]
    exact = [logits(EXACT, ids, pixels) for _, ids, pixels in asked]
    for quantize, dtype in OTHERS:
        model = load_native(EMBEDDED, dtype=dtype, quantize=quantize)[0]
        same, furthest = [], 0.0
        for (begin, ids, pixels), expected in zip(asked, exact, strict=True):
            found = logits(model, ids, pixels)
            furthest = max(furthest, float((found - expected).abs().max()))
            same += (found.argmax(-1) == expected.argmax(-1))[begin - 1 : -1].tolist()
        name = f"{quantize or 'none'} {str(dtype).removeprefix('torch.')}"
        size = num_bytes(model) / 2**20
        print(f"{name:16} {size:6.1f} MiB  same {sum(same)}/{len(same)}  furthest {furthest:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)

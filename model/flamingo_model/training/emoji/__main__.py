"""`python -m flamingo_model.training.emoji`: makes the embedded checkpoint from nothing but a seed.

Needs Debian's fonts-noto-color-emoji and wordnet-base. Each stage leaves its result in the run
folder and is skipped when it is there, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from ...checkpoints.native import EMBEDDED, save_native
from ...config import CrossAttentionConfig, DecoderConfig, FlamingoConfig, ResamplerConfig
from ...flamingo import Flamingo
from ...vision_config import VisionConfig
from .contrastive import ContrastiveHeads, train_vision
from .documents import WORDNET, Encoder, corpus, glosses, train_tokenizer
from .language import train_language
from .multimodal import Aligner, align, initialise, train_on_documents
from .pictures import Pool, PoolBuilder, Sizes
from .standins import CODE_DIM, StandIns, TextGallery
from .tasks import Tasks
from .world import FONT, SCENE_SIZE, Sprites, load_sprites

VOCAB_SIZE = 4096
SHIPPED_TOKENIZER = str(EMBEDDED / "tokenizer.json")
CODES = EMBEDDED.parent / "codes.safetensors"


def emoji_config() -> FlamingoConfig:
    """13 million parameters: 26 MB in half precision."""
    return FlamingoConfig(
        name="flamingo-emoji",
        vision=VisionConfig(image_size=SCENE_SIZE, dim=256),
        resampler=ResamplerConfig(
            dim=256, num_latents=8, num_layers=2, num_heads=8, head_dim=32, ff_mult=4
        ),
        cross_attention=CrossAttentionConfig(interval=1, num_heads=8, head_dim=32, ff_mult=2),
        decoder=DecoderConfig(
            vocab_size=VOCAB_SIZE,
            dim=256,
            num_layers=6,
            num_heads=8,
            head_dim=32,
            ff_dim=640,
            max_positions=1024,
            attention_bias=True,
            tie_embeddings=False,
        ),
        templates="emoji",
    )


def stage(module: nn.Module, path: Path, train: Callable[[], object]) -> None:
    """Loads what an earlier run left, or trains and leaves it."""
    if not path.exists():
        train()
        save_file({k: v.detach().contiguous() for k, v in module.state_dict().items()}, path)
    module.load_state_dict(load_file(path))


def train_all(run: Path, seed: int, scale: float) -> None:
    """The paper's order: vision tower, language model, freeze both, then what joins them."""
    config, sprites = emoji_config(), load_sprites(run / "sprites.npz")
    tokenizer = load_tokenizer(run / "tokenizer.json", sprites, seed)
    torch.manual_seed(seed)
    encoder, model = Encoder(tokenizer), Flamingo(config)
    heads, stand_ins = ContrastiveHeads(config.vision.dim, sprites), StandIns(config.decoder.dim)
    initialise(model)

    def steps(num: int) -> int:
        return max(1, round(num * scale))

    stage(
        nn.ModuleList([model.vision, heads, model.resampler, model.cross_attention]),
        run / "vision.safetensors",
        lambda: train_vision(model, heads, stand_ins, sprites, run, seed, steps(1250)),
    )
    gallery = text_gallery(heads, sprites, seed)
    stage(
        model.decoder,
        run / "language.safetensors",
        lambda: train_language(
            model.decoder, stand_ins, encoder, glosses(), gallery, run, seed, steps(1000)
        ),
    )
    pool, tests = pools(model, sprites, seed)
    aligner = Aligner(model, stand_ins, heads.codes().detach(), pool)
    stage(
        model,
        run / "aligned.safetensors",
        lambda: align(model, aligner, encoder, run, seed, steps(300)),
    )
    stage(
        model,
        run / "documents.safetensors",
        lambda: train_on_documents(model, aligner, encoder, tests, sprites, run, seed, steps(610)),
    )
    save_native(model, tokenizer, run / "checkpoint", torch.float16)


def train_more(run: Path, seed: int, num_steps: int) -> None:
    """More documents, from the shipped checkpoint on, with the codes that its tower was taught."""
    sprites, tokenizer = load_sprites(run / "sprites.npz"), Tokenizer.from_file(SHIPPED_TOKENIZER)
    model, stand_ins = Flamingo(emoji_config()), StandIns(emoji_config().decoder.dim)
    model.load_state_dict(load_file(EMBEDDED / "model.safetensors"))
    pool, tests = pools(model, sprites, seed)
    aligner = Aligner(model, stand_ins, load_file(CODES)["codes"].float(), pool)
    train_on_documents(model, aligner, Encoder(tokenizer), tests, sprites, run, seed, num_steps)
    save_native(model, tokenizer, run / "checkpoint", torch.float16)


def text_gallery(heads: ContrastiveHeads, sprites: Sprites, seed: int) -> TextGallery:
    known = sprites.known()
    others = sorted({*sprites.training(), *sprites.drawings()} - {*known})
    codes = heads.codes().detach().numpy()
    names = [sprites.names[sprite] for sprite in known]
    return TextGallery(names, codes[known], codes[others], np.random.default_rng(seed))


def pools(model: Flamingo, sprites: Sprites, seed: int) -> tuple[Pool, dict[str, Pool]]:
    builder = PoolBuilder(model.vision, model.config.vision, sprites, seed)
    tests = {"known": builder.test(sprites.known()), "held_out": builder.test(sprites.test())}
    return builder.training(Sizes()), tests


def load_tokenizer(path: Path, sprites: Sprites, seed: int) -> Tokenizer:
    if not path.exists():
        names = [sprites.names[i] for i in sprites.known()]
        rng = np.random.default_rng(seed)
        no_codes = np.zeros((len(names), CODE_DIM), np.float32)
        tasks = Tasks(TextGallery(names, no_codes, no_codes, rng), rng)
        drawn = [draw() for draw in tasks.kinds.values() for _ in range(300)]
        train_tokenizer(corpus(names, drawn, seed), VOCAB_SIZE).save(str(path))
    return Tokenizer.from_file(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m flamingo_model.training.emoji")
    parser.add_argument("--run", type=Path, default=Path("runs/emoji"), help="folder of the run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--more", type=int, metavar="STEPS", help="only more documents, from what is shipped on"
    )
    parser.add_argument("--ship", action="store_true", help="put the result into the package")
    chosen = parser.parse_args()
    for needed, package in ((FONT, "fonts-noto-color-emoji"), (WORDNET, "wordnet-base")):
        if not needed.exists():
            parser.error(f"{needed} is missing: apt-get install {package}")
    torch.set_num_threads(chosen.threads)
    chosen.run.mkdir(parents=True, exist_ok=True)
    if chosen.more:
        train_more(chosen.run, chosen.seed, chosen.more)
    else:
        train_all(chosen.run, chosen.seed, chosen.scale)
    print(f"checkpoint and log are in {chosen.run}")
    if chosen.ship:
        for file in (chosen.run / "checkpoint").iterdir():
            (EMBEDDED / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main()

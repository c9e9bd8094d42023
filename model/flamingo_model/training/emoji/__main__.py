"""`python -m flamingo_model.training.emoji`: makes the embedded checkpoint from nothing but a seed.

Needs Debian's fonts-noto-color-emoji and wordnet-base. Each stage leaves its result in the run
folder and is skipped when it is there, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from ...checkpoints.native import EMBEDDED, save_native
from ...config import CrossAttentionConfig, DecoderConfig, FlamingoConfig, ResamplerConfig
from ...decoder import Decoder
from ...flamingo import Flamingo
from ...vision_config import VisionConfig
from .contrastive import ContrastiveHeads, train_vision
from .documents import WORDNET, Encoder, corpus, glosses, train_tokenizer
from .language import COMPARING, tell_codes, train_language
from .language import initialise as initialise_decoder
from .multimodal import Aligner, align, initialise, train_on_documents
from .pictures import Pool, PoolBuilder, Sizes
from .standins import CODE_DIM, StandIns, TextGallery
from .tasks import Tasks
from .world import FONT, SCENE_SIZE, Sprites, load_sprites

VOCAB_SIZE = 4096


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
    for name, train in (("language", learn_language), ("comparing", learn_to_compare)):
        stage(
            model.decoder,
            run / f"{name}.safetensors",
            partial(train, model.decoder, stand_ins, encoder, gallery, run, seed, scale),
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
        lambda: train_on_documents(model, aligner, encoder, tests, sprites, run, seed, steps(800)),
    )
    save_native(model, tokenizer, run / "checkpoint", torch.float16)


def learn_language(
    decoder: Decoder,
    stand_ins: StandIns,
    encoder: Encoder,
    gallery: TextGallery,
    run: Path,
    seed: int,
    scale: float,
) -> None:
    torch.manual_seed(seed)
    initialise_decoder(decoder)
    tell_codes(decoder, stand_ins, encoder, gallery.code_of)
    num_steps = max(1, round(1000 * scale))
    train_language(decoder, stand_ins, encoder, glosses(), gallery, run, seed, num_steps)


def learn_to_compare(
    decoder: Decoder,
    stand_ins: StandIns,
    encoder: Encoder,
    gallery: TextGallery,
    run: Path,
    seed: int,
    scale: float,
) -> None:
    num_steps = max(1, round(250 * scale))
    train_language(
        decoder, stand_ins, encoder, glosses(), gallery, run, seed + 1, num_steps, 1.5e-3, COMPARING
    )


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
    parser.add_argument("--ship", action="store_true", help="put the result into the package")
    chosen = parser.parse_args()
    for needed, package in ((FONT, "fonts-noto-color-emoji"), (WORDNET, "wordnet-base")):
        if not needed.exists():
            parser.error(f"{needed} is missing: apt-get install {package}")
    torch.set_num_threads(chosen.threads)
    chosen.run.mkdir(parents=True, exist_ok=True)
    train_all(chosen.run, chosen.seed, chosen.scale)
    print(f"checkpoint and log are in {chosen.run}")
    if chosen.ship:
        for file in (chosen.run / "checkpoint").iterdir():
            (EMBEDDED / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main()

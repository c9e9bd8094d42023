"""`python -m flamingo_model.training.emoji`: makes the embedded checkpoint from nothing but a seed.

Needs Debian's fonts-noto-color-emoji and wordnet-base. Each stage has a folder of its own in the
run's, with its log, its state and its result: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from ...checkpoints.native import EMBEDDED, save_native
from ...config import CrossAttentionConfig, DecoderConfig, FlamingoConfig, ResamplerConfig
from ...flamingo import Flamingo
from ...vision_config import VisionConfig
from ..config import TrainConfig
from ..distributed import ALONE
from ..loop import Loop
from ..report import Report
from ..state import States
from . import curves, language, multimodal
from .contrastive import ContrastiveHeads, VisionStage
from .documents import WORDNET, Encoder, corpus, glosses, train_tokenizer
from .language import LanguageStage
from .multimodal import Aligner, AlignmentStage, DocumentStage
from .pictures import Pool, PoolBuilder, Sizes
from .seeded import SeededStage
from .standins import CODE_DIM, StandIns, TextGallery
from .tasks import Tasks
from .world import FONT, SCENE_SIZE, Sprites, load_sprites

VOCAB_SIZE = 4096
EACH = TrainConfig(steps=1, schedule="cosine", betas=(0.9, 0.98), save_every=100)
VISION = replace(EACH, steps=1600, rate=2e-3, warm_up=60, weight_decay=0.05, evaluate_every=400)
LANGUAGE = replace(EACH, steps=1000, rate=3e-3, warm_up=60, weight_decay=0.05)
ALIGNMENT = replace(EACH, steps=300, rate=1.5e-3, warm_up=50)
DOCUMENTS = replace(ALIGNMENT, steps=500, rate=1.2e-3, evaluate_every=200)
SHIPPED = EMBEDDED.parent  # the codes, the log and the curves, beside the checkpoint


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


@dataclass(frozen=True)
class Run:
    """The folder of a run, its seed, and the share of the full steps."""

    folder: Path
    seed: int
    scale: float = 1.0

    def train(self, name: str, config: TrainConfig, build: Callable[[], SeededStage]) -> None:
        """Trains a stage in its folder, or loads what it left there."""
        folder, stage = self.folder / name, build()
        steps = max(1, round(config.steps * self.scale))
        config = replace(config, steps=steps, seed=self.seed)
        result = folder / "result.safetensors"
        if not result.exists():
            Loop(config, ALONE, Report(folder, name), States(folder, repr(config))).run(stage)
            stage.finish()
            save_file({k: v.contiguous() for k, v in stage.module.state_dict().items()}, result)
        stage.module.load_state_dict(load_file(result))

    def sprites(self) -> Sprites:
        return load_sprites(self.folder / "sprites.npz")

    def tokenizer(self) -> Tokenizer:
        path = self.folder / "tokenizer.json"
        if not path.exists():
            build_tokenizer(self.sprites(), self.seed).save(str(path))
        return Tokenizer.from_file(str(path))


def train_all(run: Run) -> None:
    """The paper's order: vision tower, language model, freeze both, then what joins them."""
    config, sprites, tokenizer, seed = emoji_config(), run.sprites(), run.tokenizer(), run.seed
    torch.manual_seed(seed)
    encoder, model = Encoder(tokenizer), Flamingo(config)
    heads, stand_ins = ContrastiveHeads(config.vision.dim, sprites), StandIns(config.decoder.dim)
    multimodal.initialise(model)
    run.train("vision", VISION, lambda: VisionStage(model, heads, stand_ins, sprites, seed))
    codes = heads.codes().detach()
    gallery = text_gallery(codes, sprites, seed)
    language.initialise(model.decoder)
    language.tell_codes(model.decoder, stand_ins, encoder, gallery.code_of)
    run.train(
        "language",
        LANGUAGE,
        lambda: LanguageStage(model.decoder, stand_ins, encoder, glosses(), gallery, seed),
    )
    pool, tests = pools(model, sprites, seed)
    aligner = Aligner(model, stand_ins, codes, pool)
    run.train("alignment", ALIGNMENT, lambda: AlignmentStage(model, aligner, encoder, seed))
    run.train(
        "documents",
        DOCUMENTS,
        lambda: DocumentStage(model, aligner, encoder, tests, sprites, seed),
    )
    save(run, model, tokenizer, codes)


def train_more(run: Run, num_steps: int) -> None:
    """More documents, from the shipped checkpoint on, with the codes that its tower was taught."""
    sprites, tokenizer = run.sprites(), Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    model, stand_ins = Flamingo(emoji_config()), StandIns(emoji_config().decoder.dim)
    model.load_state_dict(load_file(EMBEDDED / "model.safetensors"))
    codes = load_file(SHIPPED / "codes.safetensors")["codes"].float()
    pool, tests = pools(model, sprites, run.seed)
    aligner, encoder = Aligner(model, stand_ins, codes, pool), Encoder(tokenizer)
    run.train(
        "documents",
        replace(DOCUMENTS, steps=num_steps),
        lambda: DocumentStage(model, aligner, encoder, tests, sprites, run.seed),
    )
    save(run, model, tokenizer, codes)


def save(run: Run, model: Flamingo, tokenizer: Tokenizer, codes: Tensor) -> None:
    """The checkpoint, and what ships beside it: codes, log, curves."""
    save_native(model, tokenizer, run.folder / "checkpoint", torch.float16)
    save_file({"codes": codes.half()}, run.folder / "codes.safetensors")
    curves.merge_logs(run.folder)
    curves.draw(run.folder / "log.jsonl", run.folder / "curves.png")


def ship(run: Run) -> None:
    """Puts a run's result into the package."""
    for file in (run.folder / "checkpoint").iterdir():
        (EMBEDDED / file.name).write_bytes(file.read_bytes())
    for name in ("codes.safetensors", "log.jsonl", "curves.png"):
        (SHIPPED / name).write_bytes((run.folder / name).read_bytes())


def text_gallery(codes: Tensor, sprites: Sprites, seed: int) -> TextGallery:
    known = sprites.known()
    others = sorted({*sprites.training(), *sprites.drawings()} - {*known})
    names = [sprites.names[sprite] for sprite in known]
    rng = np.random.default_rng(seed)
    return TextGallery(names, codes[known].numpy(), codes[others].numpy(), rng)


def pools(model: Flamingo, sprites: Sprites, seed: int) -> tuple[Pool, dict[str, Pool]]:
    builder = PoolBuilder(model.vision, model.config.vision, sprites, seed)
    tests = {"known": builder.test(sprites.known()), "held_out": builder.test(sprites.test())}
    return builder.training(Sizes()), tests


def build_tokenizer(sprites: Sprites, seed: int) -> Tokenizer:
    names = [sprites.names[i] for i in sprites.known()]
    rng = np.random.default_rng(seed)
    no_codes = np.zeros((len(names), CODE_DIM), np.float32)
    tasks = Tasks(TextGallery(names, no_codes, no_codes, rng), rng)
    drawn = [draw() for draw in tasks.kinds.values() for _ in range(300)]
    return train_tokenizer(corpus(names, drawn, seed), VOCAB_SIZE)


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
    torch.set_flush_denormal(True)  # gradients of what is learned get so small; 2.4 times the speed
    chosen.run.mkdir(parents=True, exist_ok=True)
    run = Run(chosen.run, chosen.seed, chosen.scale)
    if chosen.more:
        train_more(run, chosen.more)
    else:
        train_all(run)
    print(f"checkpoint, log and curves are in {chosen.run}")
    if chosen.ship:
        ship(run)


if __name__ == "__main__":
    main()

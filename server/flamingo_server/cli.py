"""The command line: `flamingo serve`, `generate`, `classify`, `convert`, `models` and `train`.

Imports of torch and the server stay inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from flamingo_client import FlamingoClient


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    try:
        chosen.run(chosen)
    except KeyboardInterrupt:
        sys.exit(130)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flamingo", description="Serve Flamingo models.")
    parser.add_argument("--version", action="version", version=f"flamingo-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_serve(commands)
    add_generate(commands)
    add_classify(commands)
    add_convert(commands)
    add_models(commands)
    add_train(commands)
    return parser


def add_serve(commands: Any) -> None:
    from .config import Settings

    parser = commands.add_parser("serve", help="load a checkpoint and answer over HTTP")
    parser.set_defaults(run=serve)
    parser.add_argument("model", nargs="?", default=None, metavar="MODEL", help="default: embedded")
    for name, field in Settings.model_fields.items():
        if name != "model":
            flag, text = f"--{name.replace('_', '-')}", f"{field.description} ({field.default})"
            parser.add_argument(flag, default=None, metavar=name.upper(), help=text)


def serve(chosen: argparse.Namespace) -> None:
    from pydantic import ValidationError

    from .config import Settings

    given = {k: v for k, v in vars(chosen).items() if k in Settings.model_fields and v is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"flamingo serve: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    from .run import run_server

    sys.exit(run_server(settings))


class AppendPart(argparse.Action):
    """Keeps `--image` and `--text` in the order they were written."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        parts = getattr(namespace, "parts", None) or []
        namespace.parts = [*parts, ((option or "").lstrip("-"), values)]


def add_generate(commands: Any) -> None:
    parser = commands.add_parser("generate", help="ask a running server", description=IN_ORDER)
    parser.set_defaults(run=generate, parts=None)
    add_prompt(parser)
    parser.add_argument("--max-tokens", type=int, default=None)
    parser.add_argument("--num-beams", type=int, default=None, help="above 1: beam search")
    parser.add_argument("--temperature", type=float, default=None)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--stop", action="append", default=None)


IN_ORDER = "--image and --text may be repeated; the model sees them in the order written."


def add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", action=AppendPart, metavar="FILE", help="a picture")
    parser.add_argument(
        "--text", action=AppendPart, help="text; <|endofchunk|> in it closes an example"
    )
    parser.add_argument("--url", default=None, help="server (FLAMINGO_URL, http://127.0.0.1:8000)")
    parser.add_argument("--api-key", default=None, help="key (FLAMINGO_API_KEY)")


def generate(chosen: argparse.Namespace) -> None:
    from flamingo_client import Token

    names = ("max_tokens", "num_beams", "temperature", "seed", "stop")
    options: Any = {name: getattr(chosen, name) for name in names}
    with asking("generate", chosen) as (client, parts):
        for event in client.stream(parts, **options):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)
        print()


def add_classify(commands: Any) -> None:
    parser = commands.add_parser(
        "classify",
        help="ask a running server which candidate is the likeliest",
        description=f"{IN_ORDER} A lone --image is asked about in the words of the model's "
        "training; otherwise the candidates are taken as written, blanks included.",
    )
    parser.set_defaults(run=classify, parts=None)
    add_prompt(parser)
    parser.add_argument("--candidates", required=True, help="texts with commas between")


def classify(chosen: argparse.Namespace) -> None:
    candidates = chosen.candidates.split(",")
    with asking("classify", chosen) as (client, parts):
        if len(parts) == 1 and "image" in parts[0]:
            query, words = {"image": parts[0]["image"]}, [text.strip() for text in candidates]
            found = client.classify(task="classify", query=query, candidates=words)
        else:
            found = client.classify(parts, candidates=candidates)
        for candidate in found.candidates:
            print(f"{candidate.probability:7.4f}  {candidate.sum:9.3f}  {candidate.text}")


@contextmanager
def asking(command: str, chosen: argparse.Namespace) -> Iterator[tuple[FlamingoClient, list[Any]]]:
    """A client, and the prompt in parts. What goes wrong is the command's last line."""
    from flamingo_client import FlamingoClient, FlamingoError, image, text

    if not chosen.parts:
        sys.exit(f"flamingo {command}: give at least one --image or --text")
    try:
        parts = [
            image(value) if kind == "image" else text(value, special_tokens=True)
            for kind, value in chosen.parts
        ]
        connection = {"base_url": chosen.url, "api_key": chosen.api_key}
        with FlamingoClient(**{k: v for k, v in connection.items() if v}) as client:
            yield client, parts
    except (FlamingoError, ValueError, OSError) as error:
        sys.exit(f"flamingo {command}: {error}")


def add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a checkpoint in the native format",
        description="Reads and writes one tensor at a time, so that any size fits in memory.",
    )
    parser.set_defaults(run=convert)
    parser.add_argument(
        "source", metavar="SRC", help="a folder, a file, or a name `flamingo models` lists"
    )
    parser.add_argument("target", metavar="DST", help="a folder that is empty or does not exist")
    types = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=types, default=None, help="default: as stored")
    text = "largest file, such as 500MB (5GB)"
    parser.add_argument("--shard-bytes", type=to_bytes, default=to_bytes("5GB"), help=text)
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in DST")
    add_parts(parser)


def add_parts(parser: Any) -> None:
    """The flags by which `serve` is told what a checkpoint is made of."""
    from flamingo_model.checkpoints.families import PARTS

    from .config import Settings

    for name in ("family", *PARTS):
        flag, field = f"--{name.replace('_', '-')}", Settings.model_fields[name]
        kind = int if name == "cross_attention_interval" else str
        text = f"{field.description} ({field.default})"
        parser.add_argument(flag, type=kind, default=field.default, metavar=name.upper(), help=text)


def to_bytes(text: str) -> int:
    """ "500MB" → 500,000,000"""
    number = text.upper().removesuffix("B")
    unit = {"K": 10**3, "M": 10**6, "G": 10**9}.get(number[-1:])
    size = int(float(number[:-1]) * unit) if unit else int(number)
    if size < 1:
        raise ValueError("at least 1 byte")
    return size


def convert(chosen: argparse.Namespace) -> None:
    from pathlib import Path

    from flamingo_model.checkpoints.checkpoint import DTYPES
    from flamingo_model.checkpoints.families import PARTS, Parts
    from flamingo_model.checkpoints.opening import open_checkpoint
    from flamingo_model.checkpoints.weights import CheckpointError
    from flamingo_model.checkpoints.writing import target_layout, write_folder

    from .progress import bytes_bar

    target, dtype = Path(chosen.target), DTYPES.get(chosen.dtype)
    try:
        if not chosen.force and target.is_dir() and any(target.iterdir()):
            raise CheckpointError(f"{target} is not empty: --force replaces the checkpoint in it")
        parts = Parts(**{name: getattr(chosen, name) for name in PARTS})
        checkpoint = open_checkpoint(chosen.source, chosen.family, parts)
        checkpoint.empty()  # a checkpoint that would not load is not worth writing
        total = sum(tensor.nbytes for tensor in target_layout(checkpoint, dtype).values())
        with bytes_bar(f"{checkpoint.config.name} → {target}", total) as advance:
            write_folder(checkpoint, target, dtype, chosen.shard_bytes, advance)
    except (CheckpointError, OSError) as error:
        sys.exit(f"flamingo convert: {' '.join(str(error).split())}")


def add_models(commands: Any) -> None:
    parser = commands.add_parser("models", help="list the published checkpoints")
    parser.set_defaults(run=models)
    parser.add_argument("--json", action="store_true", help="the same for programs")


def models(chosen: argparse.Namespace) -> None:
    from flamingo_model.checkpoints.published import PUBLISHED

    if chosen.json:
        rows = [asdict(model) | {"can_load": model.can_load} for model in PUBLISHED]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from .progress import print_models

    print_models(PUBLISHED)


def add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="learn from your own documents",
        description="Goes on from where an earlier run of the same config stopped. On many GPUs: "
        "torchrun --nproc-per-node N -m flamingo_server.cli train CONFIG.toml",
    )
    parser.set_defaults(run=train)
    parser.add_argument("config", metavar="CONFIG.toml")
    parser.add_argument("--restart", action="store_true", help="throw an earlier run's state away")


def train(chosen: argparse.Namespace) -> None:
    import os
    from pathlib import Path

    from flamingo_model.checkpoints.weights import CheckpointError
    from flamingo_model.training.config import TrainingError, load_config
    from flamingo_model.training.run import run

    try:
        place = run(load_config(Path(chosen.config)), chosen.restart)
    except (TrainingError, CheckpointError, ImportError, OSError, ValueError) as error:
        sys.exit(f"flamingo train: {error}")
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's many speaks
        print(place)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()

"""The command line: `flamingo serve`, `generate`, `classify`, `eval`, `convert`, `data`, `models`
and `train`.

Imports of torch and the server stay inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import gc
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
    chosen, rest = parser.parse_known_args(arguments)
    if rest and chosen.run is not evaluate:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    chosen.rest = rest
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
    add_eval(commands)
    add_convert(commands)
    add_data(commands)
    add_models(commands)
    add_train(commands)
    return parser


REPEATABLE = ("adapter", "adapter_folder")


def add_serve(commands: Any) -> None:
    from .config import Settings

    parser = commands.add_parser("serve", help="load a checkpoint and answer over HTTP")
    parser.set_defaults(run=serve)
    parser.add_argument("model", nargs="?", default=None, metavar="MODEL", help="default: embedded")
    for name, field in Settings.model_fields.items():
        if name != "model":
            flag, text = f"--{name.replace('_', '-')}", f"{field.description} ({field.default})"
            action = "append" if name in REPEATABLE else "store"
            parser.add_argument(flag, action=action, default=None, metavar=name.upper(), help=text)


def serve(chosen: argparse.Namespace) -> None:
    gc.disable()  # until the server is ready: a quarter of the time of all imports, for no garbage
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
    parser.add_argument("--adapter", default=None, help="a loaded adapter that is to answer")
    parser.add_argument("--url", default=None, help="server (FLAMINGO_URL, http://127.0.0.1:8000)")
    parser.add_argument("--api-key", default=None, help="key (FLAMINGO_API_KEY)")


def generate(chosen: argparse.Namespace) -> None:
    from flamingo_client import Token

    names = ("max_tokens", "num_beams", "temperature", "seed", "stop", "adapter")
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
            options: Any = {"task": "classify", "query": query, "adapter": chosen.adapter}
            found = client.classify(candidates=words, **options)
        else:
            found = client.classify(parts, candidates=candidates, adapter=chosen.adapter)
        for candidate in found.candidates:
            print(f"{candidate.probability:7.4f}  {candidate.sum:9.3f}  {candidate.text}")


def add_eval(commands: Any) -> None:
    """It reads its arguments itself, because its tasks are many and slow to import."""
    text = "few-shot benchmarks against a running server: flamingo eval --help"
    parser = commands.add_parser("eval", help=text, add_help=False)
    parser.set_defaults(run=evaluate)


def evaluate(chosen: argparse.Namespace) -> None:
    try:
        from flamingo_eval import cli
    except ImportError as error:
        sys.exit(f"flamingo eval: {error}: install flamingo-client[eval]")
    cli.main(chosen.rest)


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


def add_data(commands: Any) -> None:
    parser = commands.add_parser("data", help="look at training data before training on it")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="read all of it, decode every picture and film, and say what is there",
        description="Exits with 1 where more than --max-bad-share of the records are bad.",
    )
    check.set_defaults(run=check_data)
    check.add_argument("path", metavar="PATH", help="file, folder, address, or pattern of several")
    check.add_argument(
        "--format", default="auto", help="interleaved, folder, table, webdataset, mmc4 (auto)"
    )
    check.add_argument(
        "--option",
        action="append",
        type=to_option,
        default=[],
        metavar="NAME=VALUE",
        help="the format's own, such as root=FOLDER; may be repeated",
    )
    check.add_argument("--max-bad-share", type=share, default=0.01, help="from 0 to 1 (0.01)")
    check.add_argument(
        "--limit", type=count, default=None, help="a sample of so many records (all)"
    )
    check.add_argument("--jobs", type=count, default=None, help="processes (one for each core)")
    check.add_argument("--tokenizer", default=None, metavar="FILE", help="count its tokens too")
    check.add_argument("--json", action="store_true", help="the same for programs")


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError("at least 1")
    return number


def share(text: str) -> float:
    if not 0 <= (number := float(text)) <= 1:
        raise ValueError("from 0 to 1")
    return number


def to_option(text: str) -> tuple[str, Any]:
    """ "mix=4" → ("mix", 4), "root=a" → ("root", "a")"""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError("write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def check_data(chosen: argparse.Namespace) -> None:
    from functools import partial

    from flamingo_model.training.data.check import Checking, check
    from flamingo_model.training.data.problems import SourceError
    from flamingo_model.training.data.report import TooManyBad, print_report, records_bar
    from flamingo_model.training.data.source import find_format, open_source

    from .media.spawn import BareSpawnContext
    from .memory import limit_memory

    given = {"limit": chosen.limit, "jobs": chosen.jobs, "tokenizer": chosen.tokenizer}
    how = Checking(
        **{name: value for name, value in given.items() if value is not None},
        limit_memory=partial(limit_memory, 2 * 2**30),
        context=BareSpawnContext(),
    )
    try:
        format, _ = find_format(chosen.path, chosen.format)
        source = open_source(chosen.path, format, **dict(chosen.option))
        with records_bar(chosen.path, source, how.limit) as advance:
            report = check(source, how, advance)
        if chosen.json:
            print(json.dumps({"format": format, **report.to_dict()}, indent=2, ensure_ascii=False))
        else:
            print_report(report, f"{chosen.path} ({format})")
        report.judge(chosen.max_bad_share)
    except (SourceError, TooManyBad, TypeError, ValueError, OSError) as error:
        sys.exit(f"flamingo data check: {error}")


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

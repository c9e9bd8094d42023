"""`flamingo serve` of what is no sound checkpoint: one line says why, and the status is 1."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from adapters import replacements, write
from flamingo_server.cli import main
from tiny import save_tiny, tiny_model

Spoil = Callable[[Path], object]


class Code:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/flamingo-code-was-run",)


def edit_config(folder: Path, part: str, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part].update(values)
    path.write_text(json.dumps(config))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled_under_another_name(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": Code()}))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Code()}, folder / "pytorch_model.bin")


def lie_about_width(folder: Path) -> None:
    edit_config(folder, "decoder", dim=64)


def lie_about_depth(folder: Path) -> None:
    edit_config(folder, "decoder", num_layers=10**9)


def lie_about_the_tower(folder: Path) -> None:
    edit_config(folder, "vision", blocks=[0, 10**9])


def lie_beyond_numbers(folder: Path) -> None:
    edit_config(folder, "decoder", ff_dim=2**62)


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def unknown_architecture(folder: Path) -> None:
    values = {"architectures": ["KosmosForConditionalGeneration"], "model_type": "kosmos"}
    (folder / "config.json").write_text(json.dumps(values))


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder)


BAD: list[tuple[Spoil, str]] = [
    (truncate, "model.safetensors: not a whole"),
    (pickled_under_another_name, "model.safetensors: not a whole"),
    (pickled, "it lacks ['model.safetensors']"),
    (lie_about_width, "wrongly shaped:"),
    (lie_about_depth, "fewer tensors than the 1000000000 layers"),
    (lie_about_the_tower, "fewer tensors than the 1000000000 layers"),
    (lie_beyond_numbers, "no network has the sizes of its config.json"),
    (lose_tokenizer, "it lacks ['tokenizer.json']"),
    (unknown_architecture, "no loader here for the architecture 'KosmosForConditionalGeneration'"),
    (lose_everything, "is neither a checkpoint folder nor a published one"),
]
each = pytest.mark.parametrize(("spoil", "said"), BAD, ids=lambda x: getattr(x, "__name__", ""))


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The command takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def serve(model: str | Path, *flags: str) -> object:
    quiet = ["--port=0", "--threads=1", "--device=cpu", "--log-level=error"]
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(model), *quiet, *flags])
    return caught.value.code


def check(error: str, said: str) -> None:
    lines = [line for line in error.splitlines() if not line.startswith("INFO: ")]
    assert len(lines) == 1 and lines[0].startswith("flamingo serve: ") and said in lines[0], error


@each
def test_one_line_says_what_is_wrong(
    spoil: Spoil, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "tiny")
    spoil(folder)
    assert serve(folder) == 1
    check(capsys.readouterr().err, said)
    assert not Path("/tmp/flamingo-code-was-run").exists()


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    files = [
        write(tmp_path / name, base, replacements(base, 1, "resampler."))
        for name, base in (("right", model), ("wrong", other))
    ]
    flags = [f"--adapter={file.name}={file}" for file in files]
    assert serve(save_tiny(tmp_path / "tiny"), *flags) == 1
    check(capsys.readouterr().err, "wrong was made for another base model")
    assert "two adapters are named 'right'" in str(serve("embedded", flags[0], flags[0]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("meta-llama/Llama-3.2-11B-Vision", "is of the family mllama, which this version cannot"),
        ("nobody/nothing", "nor a published one: see `flamingo models`"),
    ],
)
def test_a_name_that_cannot_be_served_is_refused(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(name) == 1
    check(capsys.readouterr().err, said)


def test_the_command_itself_ends_with_one_and_no_traceback(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny")
    truncate(folder)
    command = [sys.executable, "-m", "flamingo_server.cli", "serve", str(folder), "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    check(done.stderr, "model.safetensors: not a whole")

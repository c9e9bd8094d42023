"""What the server's settings say of adapters, before it answers anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from adapters import FLAMINGO, replacements, write
from flamingo_model.adapters import AdapterError
from flamingo_model.checkpoints.writing import StateDict
from flamingo_server.adapters import AdapterLibrary
from flamingo_server.config import Settings
from tiny import tiny_model

MODEL = tiny_model()


def library(**settings: Any) -> AdapterLibrary:
    found = AdapterLibrary(MODEL, StateDict(MODEL), None, Settings(**settings))
    found.load_first()
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "pets", MODEL, replacements(MODEL, 1, *FLAMINGO))


def test_the_settings_adapters_are_there_from_the_start(file: Path) -> None:
    found = library(adapter=(f"a={file}", f"b={file}"))
    one, other = found.find("a"), found.find("b")
    assert found.find(None) is None and one is not None and other is not None
    assert one.adapted.digest == other.adapted.digest and one.generation != other.generation


def test_the_environment_names_several(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_ADAPTER", f"a={file}, b={file}")
    assert library().entries.keys() == {"a", "b"}


def test_without_adapters_nothing_is_read_nor_kept() -> None:
    found = library()
    assert found.weights is None and not found.entries


def test_what_cannot_be_loaded_first_is_refused(file: Path, tmp_path: Path) -> None:
    other = tiny_model(seed=3)
    wrong = write(tmp_path / "wrong", other, replacements(other, 1, *FLAMINGO))
    for settings, says in (
        ({"adapter": (f"a={wrong}",)}, "wrong was made for another base model"),
        ({"adapter": ("a=/none",)}, "/none: there is no such file"),
        ({"adapter_folder": (str(file),)}, "pets is no folder"),
        ({"adapter": (f"a={file}", f"b={file}"), "max_adapters": 1}, "more are given"),
    ):
        with pytest.raises(AdapterError, match=says):
            library(**settings)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("pets.safetensors",), "is not NAME=PATH"),
        (("a b=x",), "is not NAME=PATH"),
        (("a=",), "is not NAME=PATH"),
        (("=x",), "is not NAME=PATH"),
        (("a=x", "a=y"), "two adapters are named 'a'"),
    ],
)
def test_flags_that_name_no_adapter_are_refused(given: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(adapter=given)

"""The table of published checkpoints, and names that become folders without the network."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest

from flamingo_model.checkpoints import published
from flamingo_model.checkpoints.native import EMBEDDED, CheckpointError
from flamingo_model.checkpoints.published import PUBLISHED, resolve
from flamingo_server.cli import main
from tiny import save_tiny

NAME = "somebody/native-flamingo"
Call = tuple[str, bool]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A published checkpoint that this version can load: none is, so one is made up."""
    made_up = replace(PUBLISHED[0], name=NAME, is_on_hub=True)
    monkeypatch.setattr(published, "PUBLISHED", (*PUBLISHED, made_up))


def hub(
    cache: Path, calls: list[Call], arrives: Callable[[Path], object] = save_tiny
) -> published.Download:
    """The hub's function, as far as we use it: a cache, and a network that fills it."""

    def download(name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        calls.append((name, local_files_only))
        assert "*.safetensors" in allow_patterns
        if local_files_only and not cache.is_dir():
            raise FileNotFoundError("not in the cache")
        if not local_files_only:
            arrives(cache)
        return str(cache)

    return download


@pytest.mark.usefixtures("known")
def test_what_is_in_the_cache_is_not_asked_for_again(tmp_path: Path) -> None:
    calls = list[Call]()
    folder = save_tiny(tmp_path / "cache")
    assert resolve(NAME, hub(folder, calls)) == folder
    assert calls == [(NAME, True)]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("begun", [False, True], ids=["empty", "broken off"])
def test_what_is_not_whole_in_the_cache_is_downloaded(tmp_path: Path, begun: bool) -> None:
    calls, cache = list[Call](), tmp_path / "cache"
    if begun:
        cache.mkdir()
        (cache / "config.json").write_text("{}")
    assert resolve(NAME, hub(cache, calls)) == cache
    assert calls == [(NAME, True), (NAME, False)]
    assert (cache / "model.safetensors").is_file()


@pytest.mark.usefixtures("known")
def test_a_failed_download_says_whose_and_why(tmp_path: Path) -> None:
    def fail(cache: Path) -> None:
        raise ConnectionError("no route")

    with pytest.raises(CheckpointError, match=f"{NAME} cannot be downloaded: no route"):
        resolve(NAME, hub(tmp_path / "cache", [], fail))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real library, with an empty cache of its own and no way out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / f"models--{NAME.replace('/', '--')}"


@pytest.mark.usefixtures("known")
def test_the_hubs_own_cache_is_found_without_the_network(hub_cache: Path) -> None:
    commit = "0" * 40
    (hub_cache / "refs").mkdir(parents=True)
    (hub_cache / "refs" / "main").write_text(commit)
    folder = save_tiny(hub_cache / "snapshots" / commit)
    assert resolve(NAME) == folder


@pytest.mark.usefixtures("known", "hub_cache")
def test_without_cache_and_network_the_hub_is_quoted() -> None:
    with pytest.raises(CheckpointError, match=f"{NAME} cannot be downloaded: "):
        resolve(NAME)


def test_the_one_that_ships_and_folders_need_no_hub(tmp_path: Path) -> None:
    assert resolve("embedded") == EMBEDDED and resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("model", [m for m in PUBLISHED if not m.can_load], ids=lambda m: m.name)
def test_a_family_without_a_loader_is_said_before_any_download(model: published.Published) -> None:
    def never(*_: object, **__: object) -> str:
        raise AssertionError("asked the hub")

    with pytest.raises(CheckpointError, match=f"{model.family}, which this version cannot load"):
        resolve(model.name, never)


def test_what_is_neither_is_told_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nor a published one: see `flamingo models`"):
        resolve("nobody/nothing")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file, not a checkpoint folder"):
        resolve(str(tmp_path / "file"))


def test_names_are_unique_and_rows_are_whole() -> None:
    assert len({model.name for model in PUBLISHED}) == len(PUBLISHED) > 20
    assert {model.family for model in PUBLISHED if model.can_load} == {"native", "idefics"}
    assert all(all(getattr(m, f) != "" for f in m.__dataclass_fields__) for m in PUBLISHED)


def test_the_table_names_every_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    out = capsys.readouterr().out
    assert all(model.name in out for model in PUBLISHED)


def test_the_table_is_there_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["HuggingFaceM4/idefics-9b"]["language_model"] == "LLaMA-7B"
    assert rows["embedded"]["can_load"] and rows["HuggingFaceM4/idefics-9b"]["can_load"]

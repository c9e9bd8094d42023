"""The direction of imports, read from the source: which room may know which."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = {
    "model": {"flamingo_model"},
    "server": {"flamingo_server"},
    "clients": {"flamingo_client", "flamingo_eval"},
}
ROOMS = {room: ROOT / top / room for top, rooms in TOPS.items() for room in rooms}
BUILT = {"build", "dist", "runs", "__pycache__"}
WEB = {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings"}

ENGINE = ROOMS["flamingo_server"] / "engine"
WITHOUT_TORCH = (
    *("scheduler", "blocks", "block_tables", "media_cache", "limits"),
    *("request", "choice", "detokenize"),
)
WORKERS = (
    ROOMS["flamingo_model"] / "media.py",
    ROOMS["flamingo_model"] / "film.py",
    ROOMS["flamingo_model"] / "video.py",
    ROOMS["flamingo_server"] / "media" / "decode.py",
    ROOMS["flamingo_server"] / "media" / "spawn.py",
    ROOMS["flamingo_server"] / "constraint_trial.py",
)


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"{folder} is empty"
    return found


def training(path: Path) -> bool:
    return path.is_relative_to(ROOMS["flamingo_model"] / "training")


def package(path: Path) -> str:
    """The dotted package a file lies in: `model/flamingo_model/x.py` → `flamingo_model`."""
    room = next(folder for folder in ROOMS.values() if path.is_relative_to(folder))
    return ".".join(path.relative_to(room.parent).parent.parts)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All that runs."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from nodes(node)


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all a file imports, anywhere in it; `from a import b` gives `a` and `a.b`.

    Not what is there for the type checker alone.
    """
    names = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            source = resolve_name(source, package(path)) if node.level else source
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def packages(paths: list[Path]) -> set[str]:
    """Top names of all the files import."""
    return {name.partition(".")[0] for path in paths for name in imports(path)}


def sources(name: str) -> list[Path]:
    """The files of ours that importing a dotted name runs: its packages and itself."""
    room, *parts = name.split(".")
    if room not in ROOMS:
        return []
    found = []
    for num in range(len(parts) + 1):
        place = ROOMS[room].joinpath(*parts[:num])
        found += [place / "__init__.py", place.with_suffix(".py")]
    return [path for path in found if path.is_file()]


def reached(path: Path) -> list[Path]:
    """All files of ours that importing one runs, itself included."""
    found, left = set[Path](), [path, *sources(package(path))]
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += [source for name in imports(file) for source in sources(name)]
    return sorted(found)


def test_the_model_room_knows_neither_the_web_nor_other_rooms() -> None:
    forbidden = {*WEB, "flamingo_server", "flamingo_client", "flamingo_eval"}
    assert not packages(files(ROOMS["flamingo_model"])) & forbidden


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_only_training_and_the_command_line_know_training(room: str) -> None:
    for path in files(ROOMS[room]):
        known = {name for name in imports(path) if name.startswith("flamingo_model.training")}
        assert training(path) or path.name == "cli.py" or not known, path


@pytest.mark.parametrize("path", WORKERS, ids=lambda path: path.stem)
def test_media_workers_load_neither_torch_nor_the_web(path: Path) -> None:
    assert not packages(reached(path)) & {*WEB, "torch"}


def test_in_the_server_only_the_command_line_knows_the_client() -> None:
    for path in files(ROOMS["flamingo_server"]):
        ours = packages([path]) & ROOMS.keys()
        client = {"flamingo_client", "flamingo_eval"} if path.name == "cli.py" else set()
        assert ours <= {"flamingo_server", "flamingo_model", *client}, path


@pytest.mark.parametrize("path", files(ENGINE), ids=lambda path: path.stem)
def test_the_engine_does_not_know_the_web(path: Path) -> None:
    assert not packages(reached(path)) & WEB


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_accounting_does_not_load_torch(name: str) -> None:
    assert not packages(reached(ENGINE / f"{name}.py")) & {"torch", "tokenizers", "safetensors"}


def test_the_client_needs_the_standard_library_and_httpx_only() -> None:
    foreign = packages(files(ROOMS["flamingo_client"])) - sys.stdlib_module_names
    assert foreign <= {"httpx", "flamingo_client"}


def test_the_benchmarks_know_the_server_by_http_alone() -> None:
    foreign = packages(files(ROOMS["flamingo_eval"])) - sys.stdlib_module_names
    ours = {"flamingo_client", "flamingo_eval"}
    assert foreign == {*ours, "PIL", "matplotlib", "numpy", "rich", "sklearn"}


def test_the_house_has_these_rooms_and_no_others() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    seen = {n for n in folders if not n.startswith(".") and not n.endswith(".egg-info")} - BUILT
    assert seen == {"server", "model", "clients", "docker", "tests"}


@pytest.mark.parametrize(("top", "rooms"), TOPS.items())
def test_a_top_folder_holds_its_packages_and_no_loose_module(top: str, rooms: set[str]) -> None:
    modules = {path.relative_to(ROOT / top).parts[0] for path in files(ROOT / top)}
    assert modules == rooms


def test_imports_are_read_everywhere_and_relative_ones_in_full() -> None:
    """The reader itself: inside functions, with dots, and through what is imported."""
    cli, runner = ROOMS["flamingo_server"] / "cli.py", ENGINE / "runner.py"
    assert "flamingo_client.FlamingoClient" in imports(cli)
    assert "flamingo_server.engine.request.Media" in imports(runner)
    assert ROOMS["flamingo_model"] / "flamingo.py" in reached(runner)

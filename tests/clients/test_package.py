import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import flamingo_client
from flamingo_client import AsyncFlamingoClient, FlamingoClient

PACKAGE = Path(flamingo_client.__file__).parent
ALLOWED = {"flamingo_client", "httpx"} | sys.stdlib_module_names


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def public(cls: type) -> dict[str, list[str]]:
    methods = inspect.getmembers(cls, inspect.isfunction)
    return {
        name: list(inspect.signature(method).parameters)
        for name, method in methods
        if not name.startswith("_") or name == "__init__"
    }


def test_the_client_imports_only_httpx_and_the_standard_library() -> None:
    for path in PACKAGE.rglob("*.py"):
        modules = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert modules <= ALLOWED, path.name


def test_everything_exported_exists_and_is_listed_in_order() -> None:
    assert flamingo_client.__all__ == sorted(flamingo_client.__all__)
    assert all(hasattr(flamingo_client, name) for name in flamingo_client.__all__)


def test_both_clients_have_the_same_surface() -> None:
    assert public(FlamingoClient) == public(AsyncFlamingoClient)


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()

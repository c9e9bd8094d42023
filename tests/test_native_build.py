"""The kernels' library: compiled where a compiler is, left out where none is, and packed so."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from flamingo_model.native import is_stale
from flamingo_model.native.compiling import (
    LIBRARY,
    CannotCompile,
    compile_kernels,
    find_compiler,
)
from installing import Environment, build, names_in, run

ROOT = Path(__file__).resolve().parents[1]
NATIVE = "flamingo_model/native"
SOURCES = ROOT / "model" / NATIVE
PROJECT = ("CHANGELOG.md", "LICENSE", "README.md", "hatch_build.py", "pyproject.toml")
STALE = b"compiled from other sources"


def why_not() -> str:
    try:
        find_compiler()
    except CannotCompile as reason:
        return str(reason)
    return ""


needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a compiler")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The package's C, with the library of an earlier compilation."""
    copy = tmp_path / "native"
    copy.mkdir()
    for source in SOURCES.glob("*.[ch]"):
        shutil.copy(source, copy)
    (copy / LIBRARY).write_bytes(STALE)
    return copy


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"PATH": str(tmp_path_factory.mktemp("no-programs")), "CC": ""}


def is_compiled(library: bytes) -> bool:
    return library.startswith(b"\x7fELF")


# One folder


@needs_compiler
def test_the_library_takes_the_place_of_an_older_one_and_nothing_else_stays(folder: Path) -> None:
    before = set(folder.iterdir())
    assert compile_kernels(folder) == folder / LIBRARY
    assert is_compiled((folder / LIBRARY).read_bytes())
    assert set(folder.iterdir()) == before


@needs_compiler
def test_the_kernels_compile_without_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", f"{find_compiler()[0]} -Werror")
    assert compile_kernels(folder), caplog.text


@needs_compiler
def test_every_c_file_is_in_the_library(tmp_path: Path) -> None:
    (tmp_path / "sum.h").write_text("int thrice(int);\n")
    (tmp_path / "one.c").write_text('#include "sum.h"\nint nine(void) { return thrice(3); }\n')
    (tmp_path / "two.c").write_text('#include "sum.h"\nint thrice(int n) { return 3 * n; }\n')
    library = compile_kernels(tmp_path)
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).nine())"
    assert run(sys.executable, "-I", "-c", code) == "9\n"


def test_without_a_compiler_there_is_no_library_and_the_reason_is_told(
    folder: Path,
    without_compiler: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in without_compiler.items():
        monkeypatch.setenv(name, value)
    pretend_linux(monkeypatch)
    assert compile_kernels(folder) is None
    assert not (folder / LIBRARY).exists()
    assert caplog.messages == ["kernels.so is left out: no C compiler: gcc or cc is not there"]


def pretend_linux(monkeypatch: pytest.MonkeyPatch, machine: str = "x86_64") -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: machine)


def test_a_compiler_that_cc_names_is_the_only_one_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    pretend_linux(monkeypatch)
    assert compile_kernels(folder) is None
    assert "no-such-compiler is not there" in caplog.text


def test_another_machine_has_no_library(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_linux(monkeypatch, "aarch64")
    assert compile_kernels(folder) is None
    assert not (folder / LIBRARY).exists()
    assert "for linux on x86_64, this is linux on aarch64" in caplog.text


@needs_compiler
@pytest.mark.parametrize("code", ["int broken(void) { return }", "int f(void) { return g(); }"])
def test_c_that_does_not_compile_leaves_no_library_and_its_first_error_is_told(
    folder: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.c").write_text(f"static int unused;\n{code}\n")  # a warning comes first
    assert compile_kernels(folder) is None
    assert not (folder / LIBRARY).exists()
    (told,) = caplog.messages
    assert told.startswith("kernels.so is left out: broken.c:2:") and "error: " in told


@needs_compiler
def test_what_the_linker_misses_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", f"{find_compiler()[0]} -lnothing-of-this-name")
    assert compile_kernels(folder) is None
    assert "cannot find -lnothing-of-this-name" in caplog.text


@needs_compiler
def test_a_library_with_another_openmp_than_torchs_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiler = find_compiler()[0]
    run(compiler, "-shared", "-xc", os.devnull, "-o", tmp_path / "libomp.so")  # as Clang's is named
    monkeypatch.setenv("CC", f"{compiler} -L{tmp_path} -Wl,--no-as-needed -lomp")
    assert compile_kernels(folder) is None
    assert not (folder / LIBRARY).exists()
    assert "links another OpenMP than torch's" in caplog.text


def test_a_folder_without_c_has_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend_linux(monkeypatch)
    monkeypatch.setenv("CC", sys.executable)  # is there, and is not asked
    assert compile_kernels(tmp_path) is None
    assert f"no C file in {tmp_path}" in caplog.text


@needs_compiler
def test_an_older_library_that_cannot_be_removed_is_told_and_fails_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / LIBRARY).unlink()
    (folder / LIBRARY / "in the way").mkdir(parents=True)  # root may remove any file
    assert compile_kernels(folder) is None
    assert "the older kernels.so stays: " in caplog.messages[1]


def by_hand(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With the standard library alone: neither site-packages nor this project."""
    command = [sys.executable, "-I", "-S", shutil.copy(SOURCES / "compiling.py", folder)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


@needs_compiler
def test_compiled_by_hand_it_says_what_it_did(folder: Path) -> None:
    done = by_hand(folder)
    assert (done.returncode, is_compiled((folder / LIBRARY).read_bytes())) == (0, True)
    assert done.stderr.startswith(f"{folder / LIBRARY} is compiled by ")


def test_compiled_by_hand_it_fails_where_it_cannot(
    folder: Path, without_compiler: dict[str, str]
) -> None:
    done = by_hand(folder, **without_compiler)
    assert done.returncode == 1 and done.stderr.startswith("kernels.so is left out: ")


PROBE = """
import ctypes, json, sys
import torch
kernels = ctypes.CDLL(sys.argv[1])
torch.set_num_threads(3)
maps = [line.split() for line in open("/proc/self/maps")]
mapped = {words[5] for words in maps if len(words) > 5 and "libgomp" in words[5]}
print(json.dumps([kernels.team(), sorted(mapped), torch.__file__]))
"""
TEAM = """
#include <omp.h>
int team(void) {
    int threads = 0;
#pragma omp parallel reduction(+ : threads)
    threads += 1;
    return threads;
}
"""


@needs_compiler
def test_loaded_after_torch_the_library_runs_on_torchs_own_openmp(folder: Path) -> None:
    (folder / "team.c").write_text(TEAM)
    environment = {"OMP_NUM_THREADS": "1"}  # so that 3 can only be what torch was told
    said = run(sys.executable, "-I", "-c", PROBE, str(compile_kernels(folder)), env=environment)
    team, mapped, torch = json.loads(said)
    assert mapped == [str(Path(torch).parent / "lib/libgomp.so.1")]
    assert team == 3


@needs_compiler
def test_a_library_of_other_sources_than_those_beside_it_is_known_as_stale(folder: Path) -> None:
    """After a pull without `make`: its structs would be read as others."""
    library = compile_kernels(folder)
    assert library and not is_stale(ctypes.CDLL(str(library)), folder)
    kept = library.rename(folder.parent / "older.so")
    (folder / "step.h").write_text((folder / "step.h").read_text() + "/* new */\n")
    assert is_stale(ctypes.CDLL(str(kept)), folder)
    again = compile_kernels(folder)
    assert again
    newer = again.rename(folder.parent / "newer.so")  # what has a known name is not loaded anew
    assert not is_stale(ctypes.CDLL(str(newer)), folder)
    for source in folder.glob("*.[ch]"):  # nothing to compare with
        source.unlink()
    assert not is_stale(ctypes.CDLL(str(kept)), folder)


@needs_compiler
def test_a_library_that_does_not_say_what_it_is_made_of_is_stale(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text("int one(void) { return 1; }\n")
    assert is_stale(ctypes.CDLL(str(compile_kernels(tmp_path))), tmp_path)


# Wheels, the source archive, editable installs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "tree")


def copy_project(folder: Path) -> Path:
    """Without version control and its list of what to ignore; a stale library lies in it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors", "runs")
    for room in ("model", "server"):
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    for name in PROJECT:
        shutil.copy(ROOT / name, folder)
    (folder / "model" / NATIVE / LIBRARY).write_bytes(STALE)
    return folder


def tags(wheel: Path) -> tuple[str, str]:
    """By its name, and by what it says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/WHEEL")]
        lines = archive.read(name).decode().splitlines()
    says = dict(line.split(": ") for line in lines if line)
    return wheel.stem.split("-", 2)[2], f"{says['Tag']} pure: {says['Root-Is-Purelib']}"


@needs_compiler
def test_a_wheel_with_the_library_is_for_this_platform_and_any_python(
    tree: Path, tmp_path: Path
) -> None:
    wheel = build("wheel", tree, tmp_path / "wheel")
    tag = "py3-none-linux_x86_64"
    assert tags(wheel) == (tag, f"{tag} pure: false")
    assert is_compiled(zipfile.ZipFile(wheel).read(f"{NATIVE}/{LIBRARY}"))


def test_a_wheel_without_it_is_pure_and_has_no_stale_one(
    tree: Path, tmp_path: Path, without_compiler: dict[str, str]
) -> None:
    wheel = build("wheel", tree, tmp_path / "wheel", without_compiler)
    assert tags(wheel) == ("py3-none-any", "py3-none-any pure: true")
    assert not [name for name in names_in(wheel) if name.endswith(".so")]


@needs_compiler
def test_the_source_archive_holds_what_the_same_wheel_is_built_of_and_no_library(
    tree: Path, tmp_path: Path
) -> None:
    archive = build("sdist", tree, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert not list(unpacked.rglob("*.so"))
    again = build("wheel", unpacked, tmp_path / "again")
    assert set(names_in(again)) == set(names_in(build("wheel", tree, tmp_path / "wheel")))
    assert f"{NATIVE}/{LIBRARY}" in names_in(again)


def install_editable(tree: Path, folder: Path, env: dict[str, str] | None = None) -> Environment:
    environment = Environment.make(folder, ["hatchling"])
    options = ("--no-index", "--no-deps", "--no-build-isolation")
    environment.pip("install", *options, "--editable", tree, env=env)
    return environment


@needs_compiler
def test_an_editable_install_leaves_the_library_beside_its_source(
    tree: Path, tmp_path: Path
) -> None:
    environment = install_editable(tree, tmp_path / "environment")
    assert is_compiled((tree / "model" / NATIVE / LIBRARY).read_bytes())
    found = environment.evaluate("u.find_spec('flamingo_model').origin", "importlib.util as u")
    assert Path(found) == tree / "model/flamingo_model/__init__.py"
    assert not list(environment.packages.glob("flamingo_model"))
    (says,) = environment.packages.glob("flamingo_server-*.dist-info/WHEEL")
    assert "Root-Is-Purelib: true" in says.read_text()  # it holds a path and no library


def test_an_editable_install_without_a_compiler_goes_on_without_the_library(
    tree: Path, tmp_path: Path, without_compiler: dict[str, str]
) -> None:
    environment = install_editable(tree, tmp_path / "environment", without_compiler)
    assert environment.evaluate("u.find_spec('flamingo_server').name", "importlib.util as u")
    assert not (tree / "model" / NATIVE / LIBRARY).exists()


# make


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    "changed",
    [
        "hatch_build.py",
        *(f"model/{NATIVE}/{name}" for name in ("kernels.c", "a.h", "compiling.py")),
    ],
)
def test_make_installs_anew_when_what_the_library_is_made_of_changes(
    tree: Path, changed: str
) -> None:
    shutil.copy(ROOT / "Makefile", tree)
    stamps = [tree / ".venv" / name for name in ("pip.stamp", "serve.stamp", "dev.stamp")]
    others = [tree / name for name in ("clients/pyproject.toml", "constraints.txt")]
    for path in (*stamps, *others, tree / changed):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for time, path in enumerate([p for p in tree.rglob("*") if p not in stamps] + stamps):
        os.utime(path, (time, time))
    assert [is_done(tree, stamp) for stamp in stamps] == [True, True, True]
    os.utime(tree / changed)
    assert [is_done(tree, stamp) for stamp in stamps] == [True, False, False]


def is_done(tree: Path, stamp: Path) -> bool:
    return subprocess.run(["make", "-q", stamp.relative_to(tree)], cwd=tree).returncode == 0

"""The image without Docker: what its files claim, and their steps done in empty environments."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from flamingo_model.native.compiling import LIBRARY, CannotCompile, find_compiler
from flamingo_server.cli import build_parser
from flamingo_server.config import Settings
from installing import ENVIRONMENT, Environment, build, closure, names_in, run

ROOT = Path(__file__).resolve().parents[1]
CODE = {"clients", "model", "server"}
EXAM = "clients/flamingo_eval/emoji_world.zip"
CHECKPOINT = "flamingo_model/training/emoji/checkpoint/"
MADE = ("log.jsonl", "curves.png", "codes.safetensors")
NATIVE = "flamingo_model/native/"


# The Dockerfile, read


@dataclass
class Stage:
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [text for word, text in self.steps if word == keyword]

    def copied(self) -> list[str]:
        """What it takes from the build context."""
        copies = [text.split() for text in self.all("COPY") if not text.startswith("--from=")]
        return [source for words in copies for source in words[:-1]]


def read_dockerfile() -> tuple[list[tuple[str, str]], dict[str, Stage]]:
    """All steps in order, and the same by stage."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "docker/Dockerfile").read_text())
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    steps = [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]
    stages: dict[str, Stage] = {}
    for word, rest in steps:
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = stages.setdefault(name, Stage(base))
        elif stages:
            stage.steps.append((word, rest))
    return steps, stages


STEPS, STAGES = read_dockerfile()
SERVER = list(STAGES.values())[-1]


def ancestry(name: str) -> list[Stage]:
    """The stage and all it is built on, for the CPU."""
    stage = STAGES.get(name.replace("${DEVICE}", "cpu"))
    return [stage, *ancestry(stage.base)] if stage else []


def test_every_image_from_elsewhere_has_a_version() -> None:
    images = {s.base for s in STAGES.values()} - set(STAGES) - {"torch-${DEVICE}"}
    assert images == {"python:3.11-slim-bookworm"}


def test_the_device_names_a_stage_and_is_the_cpu_unless_said() -> None:
    assert STEPS[0] == ("ARG", "DEVICE=cpu")
    assert STAGES["dependencies"].base == "torch-${DEVICE}"
    assert {"torch-cpu", "torch-cuda"} <= STAGES.keys()


def test_the_cpu_takes_torch_alone_from_an_index_of_its_own() -> None:
    (install,) = STAGES["torch-cpu"].all("RUN")
    assert STAGES["torch-cpu"].all("ARG")[0].startswith("TORCH_INDEX_URL=https://")
    assert "--no-deps" in install and "--extra-index-url" not in install
    assert install.endswith('--index-url "$TORCH_INDEX_URL" -c constraints.txt torch')


def test_the_dependency_layer_sees_no_code() -> None:
    copied = {source for stage in ancestry("dependencies") for source in stage.copied()}
    assert copied == {"constraints.txt"}
    assert STAGES["dependencies"].all("COPY") == ["--from=requirements /build/runtime.txt ./"]
    assert not CODE & set(STAGES["requirements"].copied())


def test_the_code_comes_after_the_dependencies() -> None:
    words = [word if "wheels" not in text else "WHEELS" for word, text in SERVER.steps]
    assert words.index("COPY") < words.index("WHEELS")
    build = [text for _, text in STAGES["wheels"].steps]
    assert build.index("clients clients") > [i for i, t in enumerate(build) if "build.txt" in t][-1]


def test_no_build_tool_and_no_source_reaches_the_server() -> None:
    assert SERVER.all("COPY") == ["--from=dependencies /opt/flamingo /opt/flamingo"]
    everything = [step for stage in [SERVER, *ancestry("dependencies")] for step in stage.steps]
    assert not [text for _, text in everything if "build.txt" in text or "apt-get" in text]


def test_the_wheels_alone_are_built_with_a_c_compiler() -> None:
    with_packages = [name for name, stage in STAGES.items() if "apt-get" in str(stage.steps)]
    (install,) = [text for text in STAGES["wheels"].all("RUN") if "apt-get" in text]
    assert with_packages == ["wheels"]
    assert "--no-install-recommends gcc libc6-dev " in install
    assert install.endswith("rm -rf /var/lib/apt/lists/*")


def test_the_wheels_are_built_by_the_hook_that_compiles() -> None:
    assert "hatch_build.py" in STAGES["wheels"].copied()


def test_the_server_runs_as_a_fixed_user_who_is_not_root() -> None:
    assert SERVER.all("USER") == ["10001:10001"]
    last_run = max(i for i, (word, _) in enumerate(SERVER.steps) if word == "RUN")
    assert SERVER.steps.index(("USER", "10001:10001")) > last_run


def test_the_image_starts_a_command_that_exists_and_stops_by_sigterm() -> None:
    (entry,), (command,) = SERVER.all("ENTRYPOINT"), SERVER.all("CMD")
    assert json.loads(entry) == ["flamingo"]
    chosen = build_parser().parse_args(json.loads(command))
    assert (chosen.run.__name__, chosen.host) == ("serve", "0.0.0.0")
    assert SERVER.all("STOPSIGNAL") == ["SIGTERM"]


def test_the_port_exposed_is_the_port_served() -> None:
    (settings,) = SERVER.all("ENV")
    assert SERVER.all("EXPOSE") == [str(Settings.model_fields["port"].default)] == ["8000"]
    assert {"PYTHONUNBUFFERED=1", "FLAMINGO_PORT=8000"} <= set(settings.split())


def test_the_ignore_file_lets_in_what_is_copied_and_no_more() -> None:
    lines = [s for s in (ROOT / ".dockerignore").read_text().splitlines() if s[:1] != "#"]
    let_in = [line[1:] for line in lines if line.startswith("!")]
    copied = [source for stage in STAGES.values() for source in stage.copied()]
    assert lines[0] == "*"
    assert all(any(fnmatch(f"{source}/", f"{path}/*") for path in let_in) for source in copied)
    assert set(let_in) <= set(copied)


# The compose file, read

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))


@each_service
def test_a_service_has_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    assert service["read_only"] is True and service["tmpfs"] == ["/tmp:size=256m"]
    assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["pids_limit"]


@each_service
def test_a_service_does_not_start_without_keys(service: dict[str, Any]) -> None:
    assert service["environment"]["FLAMINGO_API_KEYS"].startswith("${FLAMINGO_API_KEYS:?")


@each_service
def test_a_service_sets_only_settings_that_exist(service: dict[str, Any]) -> None:
    names = {name.removeprefix("FLAMINGO_").lower() for name in service["environment"]}
    assert names <= Settings.model_fields.keys()


@each_service
def test_a_service_comes_back_and_has_time_to_drain(service: dict[str, Any]) -> None:
    drain = Settings.model_fields["drain_timeout_s"].default
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) > 2 * drain


@each_service
def test_checkpoints_are_mounted_read_only(service: dict[str, Any]) -> None:
    assert service["volumes"] == ["${CHECKPOINTS:-checkpoints}:/checkpoints:ro"]


def test_only_the_gpu_profile_builds_for_and_reserves_a_gpu() -> None:
    assert SERVICES["flamingo"]["build"]["args"] == {"DEVICE": "cpu"}
    assert "deploy" not in SERVICES["flamingo"] and "profiles" not in SERVICES["flamingo"]
    gpu = SERVICES["flamingo-gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["profiles"] == ["gpu"] and gpu["build"]["args"] == {"DEVICE": "cuda"}
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


# The same steps, done


@dataclass(frozen=True)
class Visit:
    """What one run of the installed server said, from its start to its stop."""

    ready: str
    health: Any
    answer: Any
    checks: list[int]
    status: int


@dataclass(frozen=True)
class Installed:
    wheels: tuple[Path, Path]
    client: Environment
    server: Environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("install")
    # 1) the stage `wheels`
    client_wheel = build("wheel", ROOT / "clients", folder / "client-wheel")
    server_wheel = build("wheel", ROOT, folder / "server-wheel")
    # 2) the client alone: pip itself refuses if httpx and its needs are not enough
    client = Environment.make(folder / "client", ["httpx"])
    client.pip("install", "--no-index", client_wheel)
    # 3) the stages `dependencies` and `server`
    lines = run(sys.executable, ROOT / "docker/requirements.py", "runtime").splitlines()
    server = Environment.make(folder / "server", lines)
    server.pip("install", "--no-index", "--no-deps", client_wheel, server_wheel)
    server.pip("check")
    return Installed((client_wheel, server_wheel), client, server)


@pytest.fixture(scope="module")
def visit(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return serve_once(installed.server, tmp_path_factory.mktemp("empty"))


def serve_once(environment: Environment, folder: Path) -> Visit:
    """A container's life."""
    command = [environment.folder / "bin/flamingo", "serve", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        assert process.stdout
        ready = next((line for line in process.stdout if "is ready on http://" in line), "")
        assert ready, f"the server ended with {process.wait()}"
        url = re.findall(r"http://\S+", ready)[0]
        health, answer = ask(f"{url}/healthz"), ask(f"{url}/v1/generate", TEXT_ONLY)
        checks = [health_check(text, url) for text in health_checks()]
        process.send_signal(signal.SIGTERM)
        return Visit(ready, health, answer, checks, process.wait())
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


TEXT_ONLY = {"prompt": [{"type": "text", "text": "This is"}], "max_tokens": 4}


def ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        return json.load(response)


def health_checks() -> list[str]:
    """The Python lines that the image and the compose file ask with."""
    (image,) = SERVER.all("HEALTHCHECK")
    image_test = json.loads(image.partition("CMD ")[2])
    tests = [image_test, *(service["healthcheck"]["test"][1:] for service in SERVICES.values())]
    assert all(test[:2] == ["python", "-c"] for test in tests)
    return [test[2] for test in tests]


def health_check(code: str, url: str) -> int:
    environment = {**ENVIRONMENT, "FLAMINGO_PORT": url.rpartition(":")[2]}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    ).returncode


def test_the_wheel_holds_the_whole_checkpoint_and_nothing_beside_it(installed: Installed) -> None:
    inside = {n for n in names_in(installed.wheels[1]) if n.startswith(CHECKPOINT)}
    files = ("README.md", "config.json", "model.safetensors", "tokenizer.json")
    assert inside == {CHECKPOINT + name for name in files}


def kernels() -> set[str]:
    """In the wheel: their sources, and the library where this machine can compile them."""
    names = {path.name for path in (ROOT / "model" / NATIVE).glob("*.[ch]")}
    try:
        find_compiler()
    except CannotCompile:
        return {NATIVE + name for name in names}
    return {NATIVE + name for name in {*names, LIBRARY}}


def test_the_wheels_are_code_and_type_markers_and_the_checkpoint(installed: Installed) -> None:
    names = [n for wheel in installed.wheels for n in names_in(wheel) if ".dist-info/" not in n]
    others = {n for n in names if not n.endswith(".py") and not n.startswith(CHECKPOINT)}
    packages = {"flamingo_client", "flamingo_eval", "flamingo_model", "flamingo_server"}
    assert {n.partition("/")[0] for n in names} == packages
    made = {f"flamingo_model/training/emoji/{n}" for n in MADE}  # how the checkpoint came to be
    exam = {"flamingo_eval/emoji_world.zip"} if (ROOT / EXAM).exists() else set[str]()
    markers = {f"{package}/py.typed" for package in packages}
    assert others == markers | made | exam | kernels()


def test_the_client_needs_httpx_and_nothing_of_ours(installed: Installed) -> None:
    client = installed.client
    found = client.evaluate("[d.name for d in m.distributions()]", "importlib.metadata as m")
    expected = {"flamingo-client", *(known.name for known in closure(["httpx"]))}
    assert set(found) == expected
    assert client.evaluate("f.FlamingoClient.__name__", "flamingo_client as f") == "FlamingoClient"
    assert client.evaluate("u.find_spec('torch')", "importlib.util as u") is None


@pytest.mark.parametrize("package", ["flamingo_server", "flamingo_model", "flamingo_client"])
def test_our_packages_come_from_the_wheels(installed: Installed, package: str) -> None:
    place = Path(installed.server.evaluate("p.__file__", f"{package} as p"))
    assert place.is_relative_to(installed.server.packages)
    assert not place.parent.is_symlink()


@pytest.mark.parametrize("folder", [CHECKPOINT, NATIVE])
def test_any_user_may_read_what_is_installed(installed: Installed, folder: str) -> None:
    files = (installed.server.packages / folder).iterdir()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_the_server_needs_no_more_than_it_declares(installed: Installed) -> None:
    """Neither what only training and tests use, nor the tools that build it."""
    for name in ("emoji", "hatchling", "matplotlib", "pytest", "transformers"):
        assert installed.server.evaluate(f"u.find_spec('{name}')", "importlib.util as u") is None


def test_the_installed_server_serves_its_embedded_checkpoint(visit: Visit) -> None:
    assert visit.health == {"status": "ok"}
    assert visit.answer["usage"]["completion_tokens"] in range(1, 5)
    assert visit.answer["model"] in visit.ready


def test_the_health_checks_pass_while_it_serves_and_fail_when_nobody_does(visit: Visit) -> None:
    assert visit.checks == [0, 0, 0]
    assert all(health_check(code, "http://127.0.0.1:1") == 1 for code in health_checks())


def test_sigterm_ends_the_server_with_status_zero(visit: Visit) -> None:
    assert visit.status == 0

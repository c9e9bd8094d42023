import tomllib
from pathlib import Path

import httpx
import pytest

from clients.fake_server import Script, SyncWorld, answer
from flamingo_client import __version__
from flamingo_client._protocol import settings_from

PYPROJECT = Path(__file__).parents[2] / "clients" / "pyproject.toml"


def send(world: type[SyncWorld], **settings: object) -> httpx.Request:
    script = Script(answer())
    world(script, **settings).call("generate", "hi")
    return script.requests[0]


def test_the_default_server_is_the_local_one(world: type[SyncWorld]) -> None:
    request = send(world)
    assert str(request.url) == "http://127.0.0.1:8000/v1/generate"
    assert "Authorization" not in request.headers


def test_the_environment_gives_the_defaults(
    world: type[SyncWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMINGO_URL", "http://env:1")
    monkeypatch.setenv("FLAMINGO_API_KEY", "env-key")
    request = send(world)
    assert request.url.host == "env"
    assert request.headers["Authorization"] == "Bearer env-key"


def test_arguments_win_over_the_environment(
    world: type[SyncWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMINGO_URL", "http://env:1")
    monkeypatch.setenv("FLAMINGO_API_KEY", "env-key")
    request = send(world, base_url="https://arg:2", api_key="arg-key")
    assert str(request.url) == "https://arg:2/v1/generate"
    assert request.headers["Authorization"] == "Bearer arg-key"


def test_an_empty_key_sends_none(world: type[SyncWorld], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_API_KEY", "env-key")
    assert "Authorization" not in send(world, api_key="").headers


def test_a_server_may_live_below_a_path(world: type[SyncWorld]) -> None:
    assert send(world, base_url="http://host/flamingo/").url.path == "/flamingo/v1/generate"


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://host:port", "/v1"]
)
def test_a_url_that_is_not_http_is_refused_at_once(world: type[SyncWorld], url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        send(world, base_url=url)


@pytest.mark.parametrize("key", ["secret\n", "two words", "schlüssel"])
def test_a_key_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        settings_from(None, key, None)
    assert key not in str(caught.value)


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(settings_from(None, "secret", None))


def test_the_timeout_reaches_the_transport(world: type[SyncWorld]) -> None:
    assert send(world, timeout=3.0).extensions["timeout"]["read"] == 3.0
    assert send(world, timeout=None).extensions["timeout"]["connect"] is None


def test_a_probe_does_not_wait_for_the_whole_timeout(world: type[SyncWorld]) -> None:
    script = Script(answer())
    world(script, timeout=600.0).call("health")
    assert script.requests[0].extensions["timeout"]["read"] == 5.0


def test_the_client_names_its_version(world: type[SyncWorld]) -> None:
    assert send(world).headers["User-Agent"] == f"flamingo-client/{__version__}"
    assert __version__ == tomllib.loads(PYPROJECT.read_text())["project"]["version"]

import pytest

from clients.fake_server import AsyncWorld, SyncWorld

SETTINGS = (
    "FLAMINGO_URL",
    "FLAMINGO_API_KEY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[SyncWorld, AsyncWorld], ids=["sync", "async"])
def world(request: pytest.FixtureRequest) -> type[SyncWorld]:
    """A claim that takes this holds for both clients."""
    driver: type[SyncWorld] = request.param
    return driver

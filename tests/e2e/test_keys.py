"""With a key set, nothing but the two health probes answers without it."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from e2e.calls import text
from flamingo_server.app import create_app
from flamingo_server.config import Settings

PUBLIC = {"/healthz", "/readyz"}
GOOD = {"prompt": [text("a")], "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded(serve: Any) -> Iterator[str]:
    with serve(api_keys="first-key, second-key") as url:
        yield url


def every_route() -> list[tuple[str, str]]:
    app = create_app(Settings(model="none"))
    ours = {(m.upper(), path) for path, item in app.openapi()["paths"].items() for m in item}
    docs = {(m, r.path) for r in app.routes for m in getattr(r, "methods", None) or ()}
    unknown = {("GET", "/no/such/route"), ("POST", "/healthz/"), ("GET", "//metrics")}
    return sorted(ours | docs | unknown)


def test_the_list_of_routes_is_not_empty() -> None:
    assert ("POST", "/v1/generate") in every_route() and ("GET", "/metrics") in every_route()


@pytest.mark.parametrize(("method", "path"), every_route())
def test_no_route_but_health_answers_without_a_key(guarded: str, method: str, path: str) -> None:
    response = httpx.request(method, guarded + path, trust_env=False)
    assert (response.status_code == 401) == (path not in PUBLIC)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer wrong", "Basic first-key", "first-key", "Bearer first-key2"],
)
def test_a_wrong_key_or_scheme_is_refused(guarded: str, header: str) -> None:
    headers = {"Authorization": header} if header else {}
    response = httpx.post(guarded + "/v1/generate", json=GOOD, headers=headers, trust_env=False)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer second-key"])
def test_each_key_opens(guarded: str, header: str) -> None:
    headers = {"Authorization": header}
    response = httpx.post(guarded + "/v1/generate", json=GOOD, headers=headers, trust_env=False)
    assert response.status_code == 200

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clients.fake_server import (
    ADAPTER,
    CLASSIFICATION,
    GENERATION,
    SCORES,
    WHOLE_STREAM,
    Receive,
    Send,
    serve,
)

README = (Path(__file__).parents[2] / "clients" / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


async def answers_everything(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """A server that gives the same answer to all of a route, streamed when asked so."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    is_stream = json.loads(body or b"{}").get("stream", False)
    kind = b"text/event-stream" if is_stream else b"application/json"
    whole = {"/v1/classify": CLASSIFICATION, "/v1/score": SCORES}.get(scope["path"], GENERATION)
    if scope["path"].startswith("/v1/adapters"):
        whole = {"adapters": [ADAPTER]} if scope["method"] == "GET" else ADAPTER
    content = WHOLE_STREAM if is_stream else json.dumps(whole).encode()
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_readme_runs(
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2)).save("cat.png")
    with serve(answers_everything) as url:
        monkeypatch.setenv("FLAMINGO_URL", url)
        exec(example.replace('"http://127.0.0.1:8000"', ""), {})
    assert "cat" in capsys.readouterr().out


def test_the_readme_shows_all_seven_ways() -> None:
    assert len(EXAMPLES) == 7

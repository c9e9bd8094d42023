"""A published name, its parts in the hub's cache and no network: served, with its numbers."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.calls import ask, text
from golden_sets import GOLDEN, GoldenSet
from hub import files, put

NAME = "openflamingo/OpenFlamingo-4B-vitl-rpj3b"
SET = GOLDEN / "of_neox_x2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's library reads its environment but once, and may have been loaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_checkpoint_in_three_repositories_is_served_by_its_name(cache: Path, serve: Any) -> None:
    put(cache, NAME, {"checkpoint.pt": SET / "checkpoint.pt"})
    put(cache, "togethercomputer/RedPajama-INCITE-Base-3B-v1", files(SET / "lm"))
    put(cache, "openai/clip-vit-large-patch14", files(GOLDEN / "of_clip_vit" / "hf"))
    (row,) = GoldenSet(SET).rows("text_only")
    with serve(NAME) as url, httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        answer = ask(client, text(row.text, special_tokens=True), max_tokens=12)
    assert answer["model"] == NAME
    assert answer["choices"][0]["token_ids"][: len(row.new_ids)] == row.new_ids

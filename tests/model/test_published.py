"""The table of published checkpoints."""

import json

import pytest

from flamingo_model.checkpoints.families import FAMILIES
from flamingo_model.checkpoints.published import PUBLISHED
from flamingo_server.cli import main


def test_names_are_unique_and_rows_are_whole() -> None:
    assert len({model.name for model in PUBLISHED}) == len(PUBLISHED) > 20
    loaded = {model.family for model in PUBLISHED if model.can_load}
    assert loaded == FAMILIES.keys() - {"otter-weights"}
    texts = [field for field in PUBLISHED[0].__dataclass_fields__ if field != "how"]
    assert all(all(getattr(m, f) != "" for f in texts) for m in PUBLISHED)


def test_the_table_names_every_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    out = capsys.readouterr().out
    assert all(model.name in out for model in PUBLISHED)


def test_the_table_is_there_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["HuggingFaceM4/idefics-9b"]["language_model"] == "LLaMA-7B"
    assert rows["embedded"]["can_load"] and rows["HuggingFaceM4/idefics-9b"]["can_load"]

"""Latents on disk: found after a restart, bounded, and never trusted."""

import os
from pathlib import Path

import torch

from fakes import FakeRunner, ask, drive, make_engine
from flamingo_server.engine.latents_store import LatentsStore, encoder_digest
from tiny import tiny_model

LATENTS = torch.arange(12.0).view(4, 3)


def filled(folder: Path, *digests: str, max_bytes: int = 10**6) -> LatentsStore:
    """Written and closed, in this order."""
    store = LatentsStore(folder, max_bytes)
    for digest in digests:
        store.put(digest, LATENTS)
    store.close()
    return store


def test_what_was_kept_is_found_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path, "x")
    found = LatentsStore(tmp_path, 10**6).get("x")
    assert found is not None and torch.equal(found, LATENTS)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    store = LatentsStore(tmp_path, 10**6)
    store.put("x", LATENTS.bfloat16())
    store.close()
    found = store.get("x")
    assert found is not None and found.dtype == torch.bfloat16


def test_an_unknown_picture_is_a_miss(tmp_path: Path) -> None:
    assert filled(tmp_path, "x").get("y") is None


def test_the_least_recently_used_files_go_first(tmp_path: Path) -> None:
    filled(tmp_path, "x", "y", "z")
    size = (tmp_path / "x.safetensors").stat().st_size
    for seconds, digest in enumerate("xyz"):
        os.utime(tmp_path / f"{digest}.safetensors", (seconds, seconds))
    store = LatentsStore(tmp_path, 3 * size)
    assert store.get("x") is not None  # now the latest
    store.put("new", LATENTS)
    store.close()
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["new", "x", "z"]
    assert store.num_bytes == 3 * size


def test_a_smaller_limit_empties_the_folder_at_the_next_start(tmp_path: Path) -> None:
    filled(tmp_path, "x", "y")
    LatentsStore(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_is_a_miss_and_goes(tmp_path: Path) -> None:
    filled(tmp_path, "x")
    (tmp_path / "x.safetensors").write_bytes(b"torn")
    assert LatentsStore(tmp_path, 10**6).get("x") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_somebody_deleted_is_a_miss(tmp_path: Path) -> None:
    store = filled(tmp_path, "x")
    (tmp_path / "x.safetensors").unlink()
    assert store.get("x") is None and store.num_bytes == 0


def test_a_half_written_file_of_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(b"half")
    assert LatentsStore(tmp_path, 10**6).get("x") is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_costs_nobody_an_answer(tmp_path: Path) -> None:
    store = LatentsStore(tmp_path / "folder", 10**6)
    store.folder.rmdir()
    engine = make_engine(FakeRunner(), store=store)
    answer = ask(engine, "abc", "x")
    drive(engine)
    store.close()
    assert answer.text() == "cba" and store.sizes == {}


def test_a_restarted_engine_encodes_no_picture_again(tmp_path: Path) -> None:
    first, second = FakeRunner(), FakeRunner()
    for runner in (first, second):
        store = LatentsStore(tmp_path, 10**6)
        engine = make_engine(runner, store=store)
        answer = ask(engine, "what", "x", "y")
        drive(engine)
        store.close()
        assert answer.text() == "tahw"
    assert (first.encoded, second.encoded) == (["x", "y"], [])


def test_other_weights_or_another_type_have_another_name() -> None:
    names = [
        encoder_digest(tiny_model()),
        encoder_digest(tiny_model(seed=1)),
        encoder_digest(tiny_model().bfloat16()),
    ]
    assert len(set(names)) == 3 and encoder_digest(tiny_model()) == names[0]

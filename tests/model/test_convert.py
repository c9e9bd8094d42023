"""`write_folder` and `flamingo convert`: every bit kept, and nothing lost on failure."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flamingo_model.checkpoints.native import CheckpointError, load_native, open_native
from flamingo_model.checkpoints.writing import split, write_folder
from flamingo_server.cli import main, to_bytes
from tiny import save_tiny, tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source")


def convert(*arguments: object) -> str:
    """What it says as it gives up; empty where it does not."""
    try:
        main(["convert", *map(str, arguments)])
    except SystemExit as error:
        return str(error.code)
    return ""


def same(folder: Path, other: Path) -> bool:
    found, expected = (load_native(f)[0].state_dict() for f in (folder, other))
    return found.keys() == expected.keys() and all(
        torch.equal(found[k], expected[k]) for k in found
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("size", ["20KB", "1B", "5GB"])
def test_a_converted_checkpoint_is_equal_to_the_bit(source: Path, size: str) -> None:
    target = source.parent / "target"
    assert not convert(source, target, "--shard-bytes", size)
    assert same(target, source)
    assert open_native(target).config == open_native(source).config
    assert open_native(target).tokenizer.to_str() == open_native(source).tokenizer.to_str()


def test_shards_keep_to_the_limit_and_the_index_names_every_tensor(source: Path) -> None:
    target = source.parent / "target"
    convert(source, target, "--shard-bytes", "60KB")
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(target.glob("*.safetensors"))
    assert index["weight_map"].keys() == tiny_model().state_dict().keys()
    assert set(index["weight_map"].values()) == {path.name for path in files} and len(files) > 3
    assert max(path.stat().st_size for path in files) <= 60_000
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in load_all(files))


def load_all(files: list[Path]) -> list[torch.Tensor]:
    """Read by the library itself, which must like what we wrote."""
    return [tensor for path in files for tensor in load_file(path).values()]


def test_the_type_asked_for_is_stored_and_otherwise_the_one_there(source: Path) -> None:
    half, again = source.parent / "half", source.parent / "again"
    convert(source, half, "--dtype", "bfloat16")
    convert(half, again)
    for folder in (half, again):
        stored = load_file(folder / "model.safetensors")
        assert {t.dtype for t in stored.values()} == {torch.bfloat16}
        assert all(
            torch.equal(stored[k], v.bfloat16()) for k, v in tiny_model().state_dict().items()
        )


def test_a_folder_with_something_in_it_is_left_alone_without_force(source: Path) -> None:
    target = save_tiny(source.parent / "target", seed=1)
    assert "is not empty" in convert(source, target) and not same(target, source)
    assert not convert(source, target, "--force") and same(target, source)


def test_force_leaves_no_old_shards_and_strange_files_alone(source: Path) -> None:
    target = source.parent / "target"
    convert(save_tiny(source.parent / "other", seed=1), target, "--shard-bytes", "60KB")
    (target / "notes.txt").write_text("mine")
    convert(source, target, "--force")
    expected = {"config.json", "model.safetensors", "tokenizer.json", "notes.txt"}
    assert names(target) == expected and same(target, source)


def test_a_folder_may_be_converted_in_place(source: Path) -> None:
    before = tiny_model().state_dict()
    convert(source, source, "--force", "--shard-bytes", "60KB")
    assert "model.safetensors" not in names(source)
    assert all(torch.equal(v, before[k]) for k, v in load_native(source)[0].state_dict().items())


def test_a_failure_leaves_what_was_there(source: Path, tmp_path: Path) -> None:
    target = save_tiny(tmp_path / "target", seed=1)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail(num_bytes: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(open_native(source), target, progress=fail)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_what_would_not_load_is_not_converted(source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    target = source.parent / "target"
    assert "model.safetensors" in convert(source, target) and not target.exists()
    assert "neither a checkpoint folder" in convert(source.parent / "none", target)


def test_a_lost_shard_is_named(source: Path) -> None:
    target = source.parent / "target"
    convert(source, target, "--shard-bytes", "60KB")
    lost = sorted(target.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        load_native(target)


@pytest.mark.parametrize(
    "index", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_an_index_that_names_no_files_beside_it_is_refused(source: Path, index: str) -> None:
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        load_native(source)


def test_a_tensor_in_two_shards_is_refused(source: Path) -> None:
    (source / "model.safetensors").rename(source / "a.safetensors")
    (source / "b.safetensors").write_bytes((source / "a.safetensors").read_bytes())
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="in another shard, too"):
        load_native(source)


def test_shards_are_filled_in_order() -> None:
    assert list(split({"a": 3, "b": 4, "c": 9, "d": 1}, 7)) == [["a", "b"], ["c"], ["d"]]


def test_sizes_are_read_with_their_units() -> None:
    assert [to_bytes(t) for t in ("7", "20KB", "1.5gb", "3M")] == [7, 20_000, 15 * 10**8, 3 * 10**6]
    with pytest.raises(ValueError, match="at least 1"):
        to_bytes("0")

"""Loading and converting take the memory of what is kept, and types keep the answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flamingo_model.checkpoints.checkpoint import pick_dtype
from flamingo_model.checkpoints.native import load_native
from forward import IMAGE, dense, pictures
from memory import MIB, convert, load, peak_of, save_pair
from tiny import save_tiny, tiny_model

CONSTANT = 16 * MIB
IDS = [10, IMAGE, 11, 12, 13]
Stored = tuple[Path, int]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], Stored]:
    """Some hundreds of megabytes of random weights, and what they take in float32."""
    made = dict[torch.dtype, Stored]()

    def make(dtype: torch.dtype) -> Stored:
        if dtype not in made:
            folder = tmp_path_factory.mktemp("stored")
            made[dtype] = folder, save_pair(folder, dtype)
        return made[dtype]

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loading_never_holds_two_copies(
    dtype: torch.dtype, stored: Callable[[torch.dtype], Stored]
) -> None:
    folder, size = stored(dtype)
    assert size > 200 * MIB
    peak = peak_of(load, folder)
    assert 0.9 * size < peak < 1.15 * size + CONSTANT, f"{peak / size:.3f}"


def test_converting_holds_one_tensor_at_a_time(
    stored: Callable[[torch.dtype], Stored],
) -> None:
    folder, size = stored(torch.float32)
    assert peak_of(convert, folder) < size / 5
    shards = list((folder / "large-converted").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in shards) > 0.5 * size and len(shards) > 1


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda:1", torch.bfloat16),
        ("float16", "cpu", torch.float16),
        ("float32", "cuda", torch.float32),
    ],
)
def test_auto_is_what_the_device_is_good_at(name: str, device: str, dtype: torch.dtype) -> None:
    assert pick_dtype(name, device) == dtype


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_gives_float32_logits_near_the_exact_ones(
    tmp_path: Path, dtype: torch.dtype, near: float
) -> None:
    exact = dense(tiny_model(), IDS, pictures(1))
    model, _ = load_native(save_tiny(tmp_path), dtype=dtype)
    logits = dense(model, IDS, pictures(1).to(dtype))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0, atol=near * float(exact.abs().max()))

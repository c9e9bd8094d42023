"""The caches' tensors: zeros that cost no memory before they are written."""

from pathlib import Path

import pytest
import torch

from flamingo_model.cache import zeros
from memory import MIB, peak_of, write_one_token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_zeros_that_can_be_written(dtype: torch.dtype) -> None:
    found = zeros((3, 5, 7), "cpu", dtype)
    assert found.data_ptr() % 64 == 0 and found.is_contiguous() and found.dtype == dtype
    assert torch.equal(found, torch.zeros(3, 5, 7, dtype=dtype))
    found[1, 2] = 4
    assert found.sum() == 28


def test_a_cache_takes_memory_only_where_something_is_written() -> None:
    assert zeros((2**17, 16, 3, 2, 16), "cpu", torch.float32).nbytes > 700 * MIB
    assert peak_of(write_one_token, Path()) < 16 * MIB

"""Tests with our C kernels, where they are, and without."""

from __future__ import annotations

import pytest

from flamingo_model import native

needs_kernels = pytest.mark.skipif(
    not native.is_available(),
    reason="our kernels are not here: no compiler at installation, or a CPU without AVX-512 VNNI",
)

WAYS = [pytest.param("ours", marks=needs_kernels), "torch's"]
"""Of a fixture that runs a test with our kernels and without."""


def switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another CPU; what is packed already keeps its kernels."""
    monkeypatch.setattr(native, "is_available", lambda: False)

import pytest
import torch

from our_kernels import WAYS, switch_off

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture(autouse=True)
def same_noise() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=WAYS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose kernels are packed and attend: the C ones, or torch's as on another CPU."""
    if request.param != "ours":
        switch_off(monkeypatch)
    way: str = request.param
    return way

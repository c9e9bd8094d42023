import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other


@pytest.fixture(autouse=True)
def same_noise() -> None:
    torch.manual_seed(0)

"""Tensors still in their files: what is done to them is done when they are read."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flamingo_model.checkpoints.files import open_file
from flamingo_model.checkpoints.lazy import Lazy, Recipes, lazy, real

WHOLE = torch.arange(24.0).view(6, 4)
OPERATIONS: dict[str, Callable[[Tensor], Tensor | Sequence[Tensor]]] = {
    "thirds": lambda x: x.chunk(3),
    "turned": lambda x: x.t(),
    "heads": lambda x: [p.flatten(0, 1) for p in x.unflatten(0, (2, 3, 1)).unbind(1)],
    "cut and widened": lambda x: torch.cat([x[:5], x.new_zeros(2, 4)]),
    "own copy": lambda x: x.t().clone(memory_format=torch.contiguous_format),
    "sum with what is there": lambda x: (x.half().float() + torch.ones(6, 4)).bfloat16(),
    "low rank": lambda x: (x @ x.t()) * (2 / 3),
    "without dimensions": lambda x: x[:1, :1].squeeze(),
}


class Counted:
    def __init__(self) -> None:
        self.num_read = 0

    def read(self) -> Tensor:
        self.num_read += 1
        return WHOLE


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_read_is_what_would_have_been_done_at_once(name: str) -> None:
    counted, operation = Counted(), OPERATIONS[name]
    found, expected = operation(lazy(WHOLE.to("meta"), counted.read)), operation(WHOLE)
    assert counted.num_read == 0
    pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected, strict=True)
    for ours, theirs in pairs:
        assert isinstance(ours, Lazy) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert torch.equal(real(ours), theirs)


def test_nothing_read_is_kept() -> None:
    counted = Counted()
    recipes = Recipes({"a": lazy(WHOLE.to("meta"), counted.read), "b": WHOLE})
    assert {type(t) for t in recipes.layout.values()} == {Tensor} and counted.num_read == 0
    assert torch.equal(recipes["a"], recipes["b"]) and torch.equal(recipes["a"], WHOLE)
    assert counted.num_read == 2


def test_two_are_compared_by_their_data() -> None:
    one = lazy(WHOLE.to("meta"), lambda: WHOLE)
    assert torch.equal(one, lazy(WHOLE.to("meta"), WHOLE.clone))
    assert not torch.equal(one, lazy(WHOLE.to("meta"), lambda: WHOLE + 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.__setitem__(0, 1.0),
        lambda x: x.add_(1),
        lambda x: x.copy_(WHOLE),
        lambda x: x.fill_(0),
    ],
)
def test_changing_one_in_place_is_refused(change: Callable[[Tensor], object]) -> None:
    with pytest.raises(TypeError, match="still in its file"):
        change(lazy(WHOLE.to("meta"), lambda: WHOLE))


@pytest.mark.parametrize("ask", [lambda x: x.tolist(), lambda x: bool(x[0, 0]), float])
def test_asking_for_numbers_is_refused(ask: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(lazy(WHOLE[:1, :1].to("meta"), lambda: WHOLE))


@pytest.mark.parametrize("is_new", [True, False], ids=["now", "torch before 1.6"])
def test_a_file_of_torchs_is_read_in_either_form(tmp_path: Path, is_new: bool) -> None:
    state = {"a": WHOLE, "b": WHOLE.t()}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=is_new)
    found = open_file(tmp_path / "a.pt")
    assert all(isinstance(tensor, Lazy) for tensor in found.values())
    assert all(torch.equal(real(found[name]), state[name]) for name in state)


def test_a_file_of_torchs_is_mapped_anew_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamingo_model.checkpoints.files.LEAST_MAPPED", 1)
    state = {str(i): torch.randn(50, 50) for i in range(40)}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "a.pt")
    found = open_file(tmp_path / "a.pt")
    for _ in range(2):
        assert all(torch.equal(real(found[name]), state[name]) for name in state)

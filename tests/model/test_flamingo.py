"""The paper's promises: closed gates are the language model, and pictures reach only what may
see them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flamingo_model.attention import DenseSelfAttention, no_media
from flamingo_model.positions import reach
from forward import IMAGE, bare, dense, look, pictures, run
from tiny import tiny_model

TEXT = [10, 11, 12, 13, 14]
TWO = [10, 11, IMAGE, 12, 13, IMAGE, 14, 15]
SECOND = TWO.index(IMAGE, 3)
OPEN = tiny_model()


class Recorder:
    """Passes cross-attention through and keeps what it answered, by block."""

    def __init__(self, attend: Callable[[int, Tensor], Tensor]) -> None:
        self.attend, self.answers = attend, dict[int, Tensor]()

    def __call__(self, block: int, q: Tensor) -> Tensor:
        self.answers[block] = self.attend(block, q)[0]
        return self.answers[block].unsqueeze(0)


def answers(ids: list[int], pixels: Tensor) -> dict[int, Tensor]:
    recorder = Recorder(look(OPEN, ids, OPEN.encode_media(pixels)))
    run(OPEN, ids, recorder)
    return recorder.answers


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_with_closed_gates_pictures_change_nothing(interval: int) -> None:
    model = tiny_model(gate=0.0, interval=interval)
    assert torch.equal(dense(model, TWO, pictures(2)), bare(model, TWO))


def test_with_closed_gates_text_alone_is_the_bare_decoder() -> None:
    model = tiny_model(gate=0.0)
    assert torch.equal(run(model, TEXT, no_media), bare(model, TEXT))


def test_with_open_gates_text_alone_is_not_the_bare_decoder() -> None:
    """The feed-forward branch runs for every token, as in every released implementation."""
    assert (run(OPEN, TEXT, no_media) - bare(OPEN, TEXT)).abs().max() > 1e-3


def test_a_token_that_sees_nothing_gets_exactly_zero_from_attention() -> None:
    for answer in answers(TWO, pictures(2)).values():
        assert torch.equal(answer[:2], torch.zeros_like(answer[:2]))
        assert (answer[2:] != 0).all()


def test_text_alone_is_the_same_whether_no_picture_or_an_unseen_one_is_given() -> None:
    alone = run(OPEN, TEXT, no_media)
    assert torch.equal(dense(OPEN, TEXT, pictures(1)), alone)
    assert torch.equal(run(OPEN, TEXT, look(OPEN, TEXT, torch.zeros(0, 4, 24))), alone)


def test_closing_the_attention_gate_alone_makes_pictures_invisible() -> None:
    model = tiny_model()
    for block in model.cross_attention:
        block.attention_gate.data.zero_()
    one, other = (dense(model, TWO, pictures(2, seed)) for seed in (0, 1))
    assert torch.equal(one, other) and not torch.equal(one, bare(model, TWO))


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_blocks_stand_before_the_first_and_every_nth_layer(interval: int) -> None:
    model = tiny_model(interval=interval)
    blocks, layers = [], []
    self_attend = DenseSelfAttention(1, len(TEXT), reach(model.config.decoder))

    def remember(block: int, q: Tensor) -> Tensor:
        blocks.append((block, len(layers)))
        return no_media(block, q)

    def count(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layers.append(layer)
        return self_attend(layer, q, k, v)

    model(torch.tensor([TEXT]), torch.arange(len(TEXT)).unsqueeze(0), count, remember)
    assert layers == [0, 1, 2]
    assert blocks == list(enumerate(range(0, 3, interval)))


def test_the_order_of_pictures_matters() -> None:
    one, other = pictures(2), pictures(2).flip(0)
    assert (dense(OPEN, TWO, one) - dense(OPEN, TWO, other)).abs().max() > 1e-3


def test_a_picture_changes_nothing_before_it() -> None:
    for changed in range(2):
        pixels = pictures(2)
        pixels[changed] += 1
        before, after = dense(OPEN, TWO, pictures(2)), dense(OPEN, TWO, pixels)
        place = TWO.index(IMAGE) if changed == 0 else SECOND
        assert torch.equal(before[:place], after[:place])
        assert (before[place:] != after[place:]).any(-1).all()


def test_a_later_token_changes_nothing_before_it() -> None:
    other = [*TWO[:-1], 99]
    before, after = dense(OPEN, TWO, pictures(2)), dense(OPEN, other, pictures(2))
    assert torch.equal(before[:-1], after[:-1]) and not torch.equal(before[-1], after[-1])


def test_after_the_second_picture_the_first_is_seen_through_text_only() -> None:
    pixels = pictures(2)
    pixels[0] += 1
    before, after = answers(TWO, pictures(2)), answers(TWO, pixels)
    assert torch.equal(before[0][SECOND:], after[0][SECOND:])
    assert not torch.equal(before[0][2:SECOND], after[0][2:SECOND])
    assert not torch.equal(before[1][SECOND:], after[1][SECOND:])


def test_pictures_are_encoded_alone() -> None:
    together = OPEN.encode_media(pictures(3))
    alone = torch.cat([OPEN.encode_media(one) for one in pictures(3).split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_frames_pass_the_tower_alone_and_reach_the_resampler_in_order() -> None:
    films = pictures(2, num_frames=3)
    features = torch.stack([OPEN.vision(film) for film in films])  # [N, T, S, dim]
    torch.testing.assert_close(OPEN.encode_media(films), OPEN.resampler(features))
    assert features.shape == (2, 3, OPEN.config.vision.num_tokens, 24)


def test_a_film_of_two_frames_is_neither_of_them() -> None:
    film = OPEN.encode_media(pictures(1, num_frames=2))
    for frame in pictures(1, num_frames=2).split(1, dim=1):
        assert (OPEN.encode_media(frame) - film).abs().max() > 1e-3


def test_media_are_projected_once_for_every_block() -> None:
    kv = OPEN.project_media(torch.randn(5, 4, 24))
    assert kv.k.shape == kv.v.shape == (3, 5, 2, 4, 8)  # [blocks, N, heads, R, head_dim]


def test_padding_pictures_are_seen_by_nobody() -> None:
    latents = OPEN.encode_media(pictures(3))
    padded = run(OPEN, TWO, look(OPEN, TWO, latents))
    torch.testing.assert_close(padded, dense(OPEN, TWO, pictures(3)[:2]), rtol=0, atol=1e-5)

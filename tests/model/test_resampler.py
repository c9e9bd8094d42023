"""The resampler is the paper's pseudo-code, and time is an embedding that stretches."""

import pytest
import torch
from torch import Tensor

from flamingo_model.config import ResamplerConfig
from flamingo_model.resampler import PerceiverResampler, ResamplerLayer

CONFIG = ResamplerConfig(
    dim=24, num_latents=4, num_layers=3, num_heads=2, head_dim=8, num_time_embeddings=3
)


@pytest.fixture(scope="module")
def resampler() -> PerceiverResampler:
    torch.manual_seed(0)
    module = PerceiverResampler(CONFIG).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if "norm" in name:  # a fresh norm is an identity and would hide a swapped one
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def attention(layer: ResamplerLayer, q: Tensor, kv: Tensor) -> Tensor:
    """Multi-head attention [R, d] → [R, d] in the order the words say it."""
    queries, (keys, values) = layer.to_q(q), layer.to_kv(kv).chunk(2, dim=-1)
    heads = []
    for q_h, k_h, v_h in zip(*(x.split(8, dim=-1) for x in (queries, keys, values)), strict=True):
        heads.append((q_h @ k_h.T / 8**0.5).softmax(-1) @ v_h)
    return layer.to_out(torch.cat(heads, dim=-1))


def pseudo_code(module: PerceiverResampler, x_f: Tensor, time_embeddings: Tensor) -> Tensor:
    """The paper's figure, line by line: x_f [T, S, d] and time_embeddings [T, 1, d] → [R, d].

    It leaves out where the norms stand: before attention, before the feed-forward, at the end.
    """
    x = module.latents
    x_f = x_f + time_embeddings
    x_f = x_f.flatten(0, 1)  # [T, S, d] -> [T * S, d]
    for layer in module.layers:
        q = layer.norm_latents(x)
        x = x + attention(layer, q=q, kv=torch.cat([layer.norm_media(x_f), q]))
        x = x + layer.feed_forward(x)
    return module.norm(x)


@pytest.mark.parametrize(("num_frames", "num_tokens"), [(1, 1), (1, 16), (3, 5), (9, 2)])
def test_any_film_becomes_the_same_number_of_latents(
    resampler: PerceiverResampler, num_frames: int, num_tokens: int
) -> None:
    assert resampler(torch.randn(2, num_frames, num_tokens, 24)).shape == (2, 4, 24)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_it_is_the_papers_pseudo_code(resampler: PerceiverResampler, num_frames: int) -> None:
    films = torch.randn(2, num_frames, 5, 24)
    expected = [pseudo_code(resampler, f, resampler.time_embeddings[:num_frames]) for f in films]
    torch.testing.assert_close(resampler(films), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_the_feed_forward_is_a_squared_relu(resampler: PerceiverResampler) -> None:
    part, x = resampler.layers[0].feed_forward, torch.randn(5, 24)
    hidden = part.norm(x) @ part.up.weight.T
    expected = (hidden.clamp(min=0) ** 2) @ part.down.weight.T
    torch.testing.assert_close(part(x), expected, rtol=1e-5, atol=1e-5)
    assert part.up.weight.shape == (4 * 24, 24)


def test_the_order_of_frames_matters(resampler: PerceiverResampler) -> None:
    film = torch.randn(1, 3, 5, 24)
    assert (resampler(film) - resampler(film.flip(1))).abs().max() > 1e-3


def test_the_order_of_tokens_within_a_frame_does_not(resampler: PerceiverResampler) -> None:
    """No spatial embedding, says the paper: places come from the tower's features."""
    film = torch.randn(1, 3, 5, 24)
    torch.testing.assert_close(resampler(film), resampler(film.flip(2)), rtol=0, atol=1e-5)


def test_a_picture_is_a_film_of_one_frame_at_time_zero(resampler: PerceiverResampler) -> None:
    picture = torch.randn(1, 1, 5, 24)
    torch.testing.assert_close(resampler.time(1), resampler.time_embeddings[:1])
    expected = pseudo_code(resampler, picture[0], resampler.time_embeddings[0])
    torch.testing.assert_close(resampler(picture)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_frames", [4, 5, 30])
def test_past_the_trained_number_time_stretches_between_its_ends(
    resampler: PerceiverResampler, num_frames: int
) -> None:
    stretched, trained = resampler.time(num_frames), resampler.time_embeddings
    assert stretched.shape == (num_frames, 1, 24)
    torch.testing.assert_close(stretched[0], trained[0])
    torch.testing.assert_close(stretched[-1], trained[-1])


def test_stretched_time_lies_on_straight_lines(resampler: PerceiverResampler) -> None:
    stretched, trained = resampler.time(5), resampler.time_embeddings
    torch.testing.assert_close(stretched[::2], trained)
    torch.testing.assert_close(stretched[1], (trained[0] + trained[1]) / 2)
    torch.testing.assert_close(stretched[3], (trained[1] + trained[2]) / 2)


def test_films_in_a_batch_do_not_meet(resampler: PerceiverResampler) -> None:
    films = torch.randn(3, 2, 5, 24)
    alone = torch.cat([resampler(film) for film in films.split(1)])
    torch.testing.assert_close(resampler(films), alone, rtol=0, atol=1e-5)

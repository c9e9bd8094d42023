"""Each of the paper's ablations changes what it names, and nothing of the default network."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flamingo_model.attention import no_media
from flamingo_model.config import FlamingoConfig, ResamplerConfig
from flamingo_model.cross_attention import media_mask
from flamingo_model.flamingo import Flamingo
from flamingo_model.resampler import PerceiverResampler, TransformerLayer, build_resampler
from flamingo_model.vision_config import VisionConfig
from forward import IMAGE, Cached, bare, dense, document, look, pictures, run
from tiny import tiny_config, tiny_model

TEXT = [10, 11, 12, 13, 14]
TWO = [10, 11, IMAGE, 12, 13, IMAGE, 14, 15]
THREE = [9, IMAGE, 10, IMAGE, IMAGE, 11, 12]
SECOND = TWO.index(IMAGE, 3)
RESAMPLER = tiny_config().resampler


def crossed(**options: object) -> FlamingoConfig:
    config = tiny_config()
    return replace(config, cross_attention=replace(config.cross_attention, **options))


def fresh(config: FlamingoConfig) -> Flamingo:
    torch.manual_seed(0)
    return Flamingo(config).eval().requires_grad_(False)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def names(config: FlamingoConfig) -> set[str]:
    """Of one cross-attention block."""
    return set(fresh(config).cross_attention[0].state_dict())


# ---- cross-attention

GATES = {"attention_gate", "feed_forward_gate"}
FEED_FORWARD = {
    "feed_forward.norm.weight",
    "feed_forward.norm.bias",
    "feed_forward.up.weight",
    "feed_forward.down.weight",
}


def test_options_only_take_parameters_away() -> None:
    default = names(crossed())
    assert default > GATES | FEED_FORWARD
    assert names(crossed(is_gated=False)) == default - GATES
    vanilla = default - FEED_FORWARD - {"feed_forward_gate"}
    assert names(crossed(has_feed_forward=False)) == vanilla
    assert names(crossed(has_feed_forward=False, is_gated=False)) == vanilla - GATES
    assert names(crossed(sees_all_media=True)) == default


@pytest.mark.parametrize("has_feed_forward", [True, False])
def test_only_gates_make_a_fresh_network_the_bare_decoder(has_feed_forward: bool) -> None:
    gated = fresh(crossed(has_feed_forward=has_feed_forward))
    assert torch.equal(dense(gated, TWO, pictures(2)), bare(gated, TWO))
    open_ = fresh(crossed(has_feed_forward=has_feed_forward, is_gated=False))
    difference = (dense(open_, TWO, pictures(2)) - bare(open_, TWO)).abs().amax(-1)
    assert (difference[2:] > 1e-3).all()


def test_without_gates_a_branch_counts_in_full() -> None:
    """As gates so wide open that tanh is one."""
    wide, without = tiny_model(gate=20.0), fresh(crossed(is_gated=False))
    kept = without.state_dict().keys()
    without.load_state_dict({k: v for k, v in wide.state_dict().items() if k in kept})
    close(dense(without, TWO, pictures(2)), dense(wide, TWO, pictures(2)))


@pytest.mark.parametrize("is_gated", [True, False])
def test_vanilla_cross_attention_changes_no_token_that_sees_nothing(is_gated: bool) -> None:
    """The dense block does, by its feed-forward."""
    model = tiny_model(config=crossed(has_feed_forward=False, is_gated=is_gated))
    assert torch.equal(run(model, TEXT, no_media), bare(model, TEXT))
    assert not torch.equal(run(tiny_model(), TEXT, no_media), bare(tiny_model(), TEXT))
    assert (dense(model, TWO, pictures(2)) - bare(model, TWO))[2:].abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [{"is_gated": False}, {"has_feed_forward": False}, {"sees_all_media": True}]
)
def test_options_survive_json(options: dict[str, bool]) -> None:
    config = crossed(**options)
    assert FlamingoConfig.from_dict(json.loads(config.to_json())) == config


# ---- which media are seen

ALL = tiny_model(config=crossed(sees_all_media=True))


def first_block(model: Flamingo, pixels: Tensor) -> Tensor:
    """What cross-attention answers before any text could carry a picture on, [T, heads, D]."""
    attend, answers = look(model, TWO, model.encode_media(pixels)), list[Tensor]()

    def recorded(block: int, q: Tensor) -> Tensor:
        answers.append(attend(block, q))
        return answers[-1]

    run(model, TWO, recorded)
    return answers[0][0]


@pytest.mark.parametrize("sees_all", [True, False])
def test_an_early_picture_matters_after_a_later_one_only_if_all_are_seen(sees_all: bool) -> None:
    model, other = tiny_model(config=crossed(sees_all_media=sees_all)), pictures(2)
    other[0] += 1
    before, after = first_block(model, pictures(2)), first_block(model, other)
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True, True, *[sees_all] * 3]


def test_a_mask_of_all_media_is_everything_up_to_the_last() -> None:
    mask = media_mask(torch.tensor([-1, 0, 1, 1]), 3, sees_all=True)
    assert mask.int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]]


def shown(num: int, first: int = 0, model: Flamingo = ALL) -> Cached:
    cached = Cached(model)
    cached.media.k.fill_(torch.nan)  # a slot that is nobody's is never read
    cached.media.v.fill_(torch.nan)
    cached.show(list(range(first, first + num)), pictures(num))
    return cached


@pytest.mark.parametrize("cut", range(len(THREE)))
def test_with_all_media_chunks_and_single_tokens_equal_the_dense_pass(cut: int) -> None:
    cached, whole = shown(3, first=2), document(THREE, first_slot=2, sees_all=True)
    logits = cached.step(whole.cut(0, cut)) if cut else []
    for i in range(cut, len(THREE)):
        logits += cached.step(decodes=[whole.cut(i, i + 1)])
    close(torch.cat(logits), dense(ALL, THREE, pictures(3)))


def test_with_all_media_sequences_of_few_and_many_pictures_decode_together() -> None:
    cached = shown(4)
    three = document(THREE, 0, first_slot=0, sees_all=True)
    one = document([IMAGE, 7, 8], 1, first_slot=3, sees_all=True)
    none = document(TEXT, 2, sees_all=True)
    cached.step(*(chunk.cut(0, -1) for chunk in (three, one, none)))
    found = cached.step(decodes=[chunk.cut(-1 + len(chunk.ids)) for chunk in (three, one, none)])
    close(found[0], dense(ALL, THREE, pictures(4)[:3])[-1:])
    close(found[1], dense(ALL, [IMAGE, 7, 8], pictures(4)[3:])[-1:])
    close(found[2], dense(ALL, TEXT, pictures(1))[-1:])


# ---- the resampler


def resampler(kind: str, **options: object) -> PerceiverResampler:
    torch.manual_seed(0)
    config = replace(RESAMPLER, kind=kind, **options)
    made = build_resampler(config, replace(tiny_config().vision, dim=40))
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["perceiver", "transformer", "mlp"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 16), (3, 5), (9, 2)])
def test_any_film_becomes_the_same_number_of_latents(kind: str, shape: tuple[int, int]) -> None:
    latents = resampler(kind)(torch.randn(2, *shape, 24))
    assert latents.shape == (2, 4, 24) and latents.std() > 0.5


@pytest.mark.parametrize("kind", ["perceiver", "transformer", "mlp"])
def test_every_kind_tells_pictures_and_frames_apart(kind: str) -> None:
    made, film = resampler(kind), torch.randn(1, 3, 5, 24)
    assert (made(film) - made(film.flip(1))).abs().max() > 1e-3
    assert (made(film) - made(torch.randn(1, 3, 5, 24))).abs().max() > 1e-2


def test_the_transformer_is_self_attention_over_features_and_latents() -> None:
    made, film = resampler("transformer", num_layers=1), torch.randn(1, 1, 5, 24)
    x = torch.cat([(film + made.time_embeddings[:1]).flatten(1, 2), made.latents[None]], dim=1)
    layer = made.layers[0]
    assert isinstance(layer, TransformerLayer)
    q, (k, v) = layer.to_q(layer.norm_latents(x)), layer.to_kv(layer.norm_latents(x)).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    x = x + layer.to_out(attended.transpose(1, 2).flatten(2))
    x = x + layer.feed_forward(x)
    close(made(film), made.norm(x[:, -4:]))


def test_the_mlp_has_no_attention_and_keeps_the_order_of_features() -> None:
    made, film, other = resampler("mlp"), *torch.randn(2, 1, 1, 8, 24)
    assert not any("to_q" in name for name in made.state_dict())
    other[:, :, 2:] = film[:, :, 2:]  # the first two make the first of four averages
    changed = (made(film) - made(other)).abs().amax(-1)[0]
    assert changed[0] > 0.1 and (changed[1:] < 1e-5).all()


@pytest.mark.parametrize("kind", ["transformer", "mlp"])
def test_every_kind_makes_a_whole_network(kind: str) -> None:
    config = replace(tiny_config(), resampler=replace(RESAMPLER, kind=kind))
    model = tiny_model(config=config)
    one, other = (dense(model, TWO, pictures(2, seed)) for seed in (0, 1))
    assert (one - other)[2:].abs().max() > 1e-3


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="resampler.kind 'conv' is not known; known: 'perceiver'"):
        ResamplerConfig(dim=24, kind="conv")


def test_a_projection_brings_any_tower_to_the_resamplers_width() -> None:
    made = resampler("perceiver", has_projection=True)
    assert made(torch.randn(2, 1, 5, 40)).shape == (2, 4, 24)
    assert "project.weight" not in resampler("perceiver").state_dict()
    vision = VisionConfig(32, dim=64, kind="nfnet", widths=(16, 32), blocks=(1, 1), group_width=8)
    config = replace(
        tiny_config(), vision=vision, resampler=replace(RESAMPLER, has_projection=True)
    )
    assert fresh(config).encode_media(torch.randn(2, 1, 3, 32, 32)).shape == (2, 4, 24)

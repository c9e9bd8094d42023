"""The arithmetic of closed-ended answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from flamingo_model.media import Transform
from flamingo_server.candidates import (
    CandidateLimits,
    Likelihood,
    averaged,
    blanked,
    orders,
    softmax,
    tokenise,
    writes_blank,
)
from flamingo_server.engine.request import Media, Prompt
from flamingo_server.errors import BadRequest, OutOfRange, TooLarge
from golden_sets import GOLDEN
from tiny import tiny_config, tiny_tokenizer

LIMITS = CandidateLimits(max_length=300, max_tokens=250_000)


def test_orders_differ_begin_as_given_and_come_again_with_their_seed() -> None:
    found = orders(5, 32, seed=1)
    assert found[0] == (0, 1, 2, 3, 4) and len(set(found)) == 32
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in found)
    assert found == orders(5, 32, seed=1) != orders(5, 32, seed=2)


def test_every_order_of_few_examples_is_found_and_no_more_are_promised() -> None:
    assert set(orders(3, 6, seed=0)) == set(orders(3, 6, seed=9))
    assert orders(0, 1, seed=0) == [()]
    with pytest.raises(OutOfRange, match="3 examples have 6 orders"):
        orders(3, 7, seed=0)


def test_texts_are_tokenised_alone_whatever_group_they_fall_in() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["a" * 200, "b"] * 1200  # two groups and more
    found = tokenise(tokenizer, texts, "candidates", LIMITS)
    assert [len(ids) for ids in found] == [200, 1] * 1200
    assert found[:2] == [tokenizer.encode(text).ids for text in texts[:2]]


def test_too_many_tokens_are_refused_by_their_place() -> None:
    with pytest.raises(TooLarge, match=r"candidates\[1\] has 301 tokens") as caught:
        tokenise(tiny_tokenizer(), ["a", "a" * 301], "candidates", LIMITS)
    assert caught.value.param == "candidates[1]"
    with pytest.raises(TooLarge, match="more than 250,000 tokens together"):
        tokenise(tiny_tokenizer(), ["a" * 300] * 1000, "candidates", LIMITS)


def test_a_text_without_tokens_is_refused() -> None:
    knows_nothing = Tokenizer(tokenizer_models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(BadRequest, match="has no tokens"):
        tokenise(knows_nothing, ["b"], "candidates", LIMITS)


def test_only_some_tokenizers_write_a_blank_themselves() -> None:
    llama = Tokenizer.from_file(str(GOLDEN / "idefics_qkln" / "tokenizer.json"))
    assert writes_blank(llama) and not writes_blank(tiny_tokenizer())


def test_orders_are_averaged_candidate_by_candidate() -> None:
    found = averaged([[[-1.0, -2.0], [-4.0]], [[-2.0, -3.0], [-2.0]]])
    assert found == [Likelihood(-4.0, -2.0), Likelihood(-3.0, -3.0)]


def test_softmax_adds_up_to_1_however_small_the_likelihoods() -> None:
    found = softmax([-5000.0, -5001.0, -9000.0])
    assert math.fsum(found) == pytest.approx(1) and found[0] == pytest.approx(1 / (1 + 1 / math.e))


def test_a_blank_takes_the_place_of_the_last_picture_alone() -> None:
    transform: Transform = tiny_config().vision.pixel_transform()
    film = np.zeros((3, 4, 4, 3), np.uint8)
    prompt = Prompt([1, 2], [0, 1], [Media(film[:1], "a"), Media(film, "b")], salt="s")
    found = blanked(prompt, transform)
    assert found.media[0] is prompt.media[0] and found.salt == "s"
    assert found.media[1].pixels.shape == (3, 4, 4, 3) and found.media[1].digest != "b"
    assert set(found.media[1].pixels.flatten().tolist()) == {128}

"""Which picture a token saw in older code, for every order of text and pictures."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flamingo_model.attention import DenseCrossAttention
from flamingo_model.cross_attention import media_mask, visible_media
from flamingo_model.media_rules import last_for_generated, next_media, none_for_generated
from forward import IMAGE, Cached, Chunk, run
from published import LLAMA, source

tokens = st.lists(st.sampled_from([IMAGE, 7, 8]), max_size=30)


def reference(ids: list[int]) -> list[int]:
    """The lines of version 1 with `attend_previous=False`, whose counts begin at 1."""
    media = torch.tensor(ids, dtype=torch.long) == IMAGE
    text_time = media.cumsum(-1)
    text_time[~media] += 1
    text_time[text_time > media.count_nonzero()] = 0
    return [int(time) - 1 for time in text_time]


@given(tokens)
def test_the_rule_is_version_ones(ids: list[int]) -> None:
    assert next_media(ids, IMAGE) == reference(ids)


@given(tokens)
def test_a_pictures_own_token_sees_it_under_both_rules(ids: list[int]) -> None:
    places = [i for i, token in enumerate(ids) if token == IMAGE]
    for index in (next_media(ids, IMAGE), visible_media(ids, IMAGE)):
        assert [index[i] for i in places] == list(range(len(places)))


@given(tokens)
def test_text_sees_what_the_next_picture_shows(ids: list[int]) -> None:
    index = next_media(ids, IMAGE)
    for i, token in enumerate(ids):
        if token != IMAGE:
            later = [j for j in range(i, len(ids)) if ids[j] == IMAGE]
            assert index[i] == (index[later[0]] if later else -1)


@given(tokens)
def test_text_sees_one_picture_further_than_under_the_papers_rule(ids: list[int]) -> None:
    last = ids.count(IMAGE) - 1
    for token, new, old in zip(ids, next_media(ids, IMAGE), visible_media(ids, IMAGE), strict=True):
        assert token == IMAGE or new == (old + 1 if old < last else -1)


def test_with_two_captions_the_first_sees_the_second_picture_and_the_second_none() -> None:
    assert next_media([7, IMAGE, 8, 8, IMAGE, 8], IMAGE) == [0, 0, 1, 1, 1, -1]


@given(tokens)
def test_what_is_generated_sees_the_last_picture_or_none(ids: list[int]) -> None:
    index = visible_media(ids, IMAGE)
    assert last_for_generated(index) == ids.count(IMAGE) - 1
    assert none_for_generated(index) == -1


@pytest.mark.parametrize("rule", [next_media, visible_media])
def test_the_network_steps_under_any_rule(rule: Callable[[list[int], int], list[int]]) -> None:
    """Prompt and generated tokens through the caches, against the whole sequence at once."""
    model, pixels = source(LLAMA, interval=2, num_rows=16), torch.randn(2, 1, 3, 32, 32)
    prompt, new = [7, IMAGE, 8, 8, IMAGE, 8], [9, 10]
    index = rule(prompt, IMAGE)
    caches = Cached(model)
    caches.show([0, 1], pixels)
    (found,) = caches.step(Chunk(0, prompt, index))
    steps = [found]
    for place, token in enumerate(new, start=len(prompt)):
        steps += caches.step(decodes=[Chunk(0, [token], [none_for_generated(index)], place)])
    seen = torch.tensor([index + [none_for_generated(index)] * len(new)])
    media = model.project_media(model.encode_media(pixels).unsqueeze(0))
    whole = run(model, prompt + new, DenseCrossAttention(media, media_mask(seen, 2)))
    torch.testing.assert_close(torch.cat(steps), whole)

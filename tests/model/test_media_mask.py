"""Which token sees which picture: the paper's rule, for every order of text and pictures."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flamingo_model.cross_attention import media_mask, visible_media
from forward import IMAGE

tokens = st.lists(st.sampled_from([IMAGE, 7, 8]), max_size=30)


@given(tokens)
def test_text_before_the_first_picture_sees_none(ids: list[int]) -> None:
    text = ids.index(IMAGE) if IMAGE in ids else len(ids)
    assert visible_media(ids, IMAGE)[:text] == [-1] * text


@given(tokens)
def test_each_picture_is_seen_from_its_own_token_on(ids: list[int]) -> None:
    index = visible_media(ids, IMAGE)
    at_pictures = [seen for token, seen in zip(ids, index, strict=True) if token == IMAGE]
    assert at_pictures == list(range(ids.count(IMAGE)))


@given(tokens)
def test_text_sees_what_the_token_before_it_sees(ids: list[int]) -> None:
    index = visible_media(ids, IMAGE)
    for i in range(1, len(ids)):
        assert ids[i] == IMAGE or index[i] == index[i - 1]


@given(tokens)
def test_the_index_never_decreases(ids: list[int]) -> None:
    index = visible_media(ids, IMAGE)
    assert index == sorted(index)
    assert len(index) == len(ids)


@given(tokens, tokens)
def test_later_tokens_change_nothing_before_them(ids: list[int], more: list[int]) -> None:
    assert visible_media(ids + more, IMAGE)[: len(ids)] == visible_media(ids, IMAGE)


@given(tokens, st.integers(0, 3))
def test_the_mask_shows_each_token_at_most_one_picture(ids: list[int], spare: int) -> None:
    """Pictures beyond the document's own, as padding has them, are seen by nobody."""
    index = torch.tensor(visible_media(ids, IMAGE), dtype=torch.long)
    mask = media_mask(index, ids.count(IMAGE) + spare)
    assert mask.shape == (len(ids), ids.count(IMAGE) + spare) and mask.dtype == torch.bool
    assert mask.sum(-1).tolist() == (index >= 0).long().tolist()
    assert all(mask[i, seen] for i, seen in enumerate(index.tolist()) if seen >= 0)


def test_the_mask_keeps_the_batch_shape() -> None:
    mask = media_mask(torch.tensor([[-1, 0, 1], [0, 0, -1]]), 2)
    assert mask.tolist() == [
        [[False, False], [True, False], [False, True]],
        [[True, False], [True, False], [False, False]],
    ]


def test_two_pictures_in_a_row_leave_the_first_to_its_own_token() -> None:
    assert visible_media([7, IMAGE, IMAGE, 8, 8], IMAGE) == [-1, 0, 1, 1, 1]

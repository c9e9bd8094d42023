"""The families' rules of which token sees which picture, beside the paper's."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from flamingo_model.cross_attention import MEDIA_RULES, MarkIds, visible_media

END, IMAGE, OTHER_IMAGE = 2, 3, 4
MARKS = MarkIds(frozenset({IMAGE}), END)
LAST, IDEFICS, LEGACY = (MEDIA_RULES[name] for name in ("last", "until_end_of_text", "legacy"))

tokens = st.lists(st.sampled_from([END, IMAGE, 7]), max_size=30)


@given(tokens)
def test_the_paper_s_rule_has_no_eye_for_the_end_of_a_text(ids: list[int]) -> None:
    assert LAST.prompt(ids, MARKS) == visible_media(ids, IMAGE)


def test_a_rule_may_have_several_marks() -> None:
    """flamingo-mini takes `<` for a picture, with a space before it or without."""
    marks = MarkIds(frozenset({IMAGE, OTHER_IMAGE}))
    assert LAST.prompt([7, IMAGE, 7, OTHER_IMAGE, 7], marks) == [-1, 0, 0, 1, 1]


@given(tokens)
def test_every_rule_has_an_entry_for_every_token(ids: list[int]) -> None:
    for rule in MEDIA_RULES.values():
        index = rule.prompt(ids, MARKS)
        assert len(index) == len(ids)
        assert all(-1 <= seen < ids.count(IMAGE) for seen in index)
        assert rule.generated(index) in (-1, *index)


def test_idefics_sees_nothing_from_an_end_of_text_to_the_next_picture() -> None:
    ids = [7, IMAGE, 7, END, 7, END, 7, IMAGE, IMAGE, 7]
    assert IDEFICS.prompt(ids, MARKS) == [-1, 0, 0, 0, -1, -1, -1, 1, 2, 2]


@given(tokens)
def test_idefics_sees_the_last_picture_or_none(ids: list[int]) -> None:
    pairs = zip(IDEFICS.prompt(ids, MARKS), visible_media(ids, IMAGE), strict=True)
    assert all(seen in (-1, last) for seen, last in pairs)


@given(tokens, tokens)
def test_idefics_looks_at_nothing_later(ids: list[int], more: list[int]) -> None:
    assert IDEFICS.prompt(ids + more, MARKS)[: len(ids)] == IDEFICS.prompt(ids, MARKS)


def test_idefics_goes_on_with_what_the_prompt_s_last_token_saw() -> None:
    assert IDEFICS.generated([-1, 0, 1]) == 1
    assert IDEFICS.generated([0, 0, -1]) == -1
    assert IDEFICS.generated([]) == -1


def test_legacy_text_sees_the_picture_after_it() -> None:
    """`<image>caption<eoc><image>caption`: the first caption sees picture 2, the last nothing."""
    assert LEGACY.prompt([7, IMAGE, 7, 7, IMAGE, 7, 7], MARKS) == [0, 0, 1, 1, 1, -1, -1]


@given(tokens)
def test_legacy_pictures_see_themselves(ids: list[int]) -> None:
    index = LEGACY.prompt(ids, MARKS)
    at_pictures = [seen for token, seen in zip(ids, index, strict=True) if token == IMAGE]
    assert at_pictures == list(range(ids.count(IMAGE)))


@given(tokens)
def test_legacy_text_is_one_ahead_of_the_paper_s(ids: list[int]) -> None:
    num_media = ids.count(IMAGE)
    for token, seen, last in zip(
        ids, LEGACY.prompt(ids, MARKS), visible_media(ids, IMAGE), strict=True
    ):
        assert token == IMAGE or seen == (last + 1 if last + 1 < num_media else -1)


def test_legacy_answers_see_nothing() -> None:
    assert LEGACY.generated(LEGACY.prompt([7, IMAGE], MARKS)) == -1


def version_ones(ids: list[int]) -> list[int]:
    """The lines of OpenFlamingo 1 with `attend_previous=False`, whose counts begin at 1."""
    media = torch.tensor(ids, dtype=torch.long) == IMAGE
    text_time = media.cumsum(-1)
    text_time[~media] += 1
    text_time[text_time > media.count_nonzero()] = 0
    return [int(time) - 1 for time in text_time]


@given(st.lists(st.sampled_from([IMAGE, 7, 8]), max_size=30))
def test_the_legacy_rule_is_version_ones(ids: list[int]) -> None:
    assert LEGACY.prompt(ids, MARKS) == version_ones(ids)


def test_otters_generated_tokens_see_nothing() -> None:
    rule = MEDIA_RULES["last_in_prompt"]
    index = rule.prompt([7, IMAGE, 7], MARKS)
    assert index == [-1, 0, 0] and rule.generated(index) == -1

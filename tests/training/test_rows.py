"""Documents → tokens: what is seen, what is learned, in the wording of each family."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flamingo_model.config import SpecialTokens
from flamingo_model.training.data.document import (
    BadRecord,
    Document,
    MediaPart,
    Part,
    TextPart,
)
from flamingo_model.training.rows import Row, RowWriter, touches, unmark
from tiny import tiny_config, tiny_tokenizer
from training.made import dataset

IMAGE = MediaPart("image", b"")
TOKENIZER = tiny_tokenizer()
WRITER = RowWriter(TOKENIZER, tiny_config())
AS_TEXT = RowWriter(TOKENIZER, replace(tiny_config(), tokens=SpecialTokens(image_style="text")))


def write(*parts: Part, writer: RowWriter = WRITER, seed: int = 0, **options: object) -> Row:
    """Without an end of text, unless the options say so."""
    document, settings = Document(parts, "made:1"), dataset(**{"end_of_text": False} | options)
    return writer.write(document, settings, np.random.default_rng(seed))


def spelt(row: Row) -> str:
    return TOKENIZER.decode(list(row.ids), skip_special_tokens=False)


def learned(row: Row) -> str:
    ids = [i for i, is_learned in zip(row.ids, row.learned, strict=True) if is_learned]
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def test_a_chunk_ends_before_the_next_picture_and_at_the_end() -> None:
    row = write(IMAGE, TextPart("one"), IMAGE, TextPart("two"))
    end = "<|endofchunk|>"
    assert spelt(row) == f"<image>one{end}<image>two{end}"


def test_all_but_pictures_is_learned() -> None:
    row = write(IMAGE, TextPart("one"), IMAGE, TextPart("two"))
    assert learned(row) == "one<|endofchunk|>two<|endofchunk|>"


def test_text_that_is_read_only_is_not_learned_and_ends_no_chunk() -> None:
    row = write(IMAGE, TextPart("What?", learned=False), TextPart(" A fox"))
    assert spelt(row) == "<image>What? A fox<|endofchunk|>"
    assert learned(row) == " A fox<|endofchunk|>"


def test_a_question_before_its_picture_stays_in_the_picture_s_chunk() -> None:
    row = write(TextPart("Look:", learned=False), IMAGE, TextPart("fox"))
    assert spelt(row) == "Look:<image>fox<|endofchunk|>"


def test_questions_are_learned_where_the_dataset_says_so() -> None:
    row = write(IMAGE, TextPart("What?", learned=False), TextPart(" fox"), learn_questions=True)
    assert learned(row).startswith("What? fox")


def test_text_sees_the_picture_before_it() -> None:
    row = write(TextPart("a"), IMAGE, TextPart("b"), IMAGE, TextPart("c"))
    assert row.media_index == (-1, -1, 0, 0, 0, 1, 1, 1)


def test_with_p_next_text_sees_the_picture_after_it() -> None:
    row = write(TextPart("a"), IMAGE, TextPart("b"), IMAGE, TextPart("c"), p_next=1.0)
    assert row.media_index == (0, 0, 0, 1, 1, 1, -1, -1)


def test_p_next_is_drawn_for_each_document() -> None:
    rows = [write(IMAGE, TextPart("a"), p_next=0.5, seed=seed) for seed in range(40)]
    assert 5 < sum(row.media_index[1] == -1 for row in rows) < 35


def test_a_leading_space_is_put_before_the_text_of_a_picture_alone() -> None:
    row = write(TextPart("a"), IMAGE, TextPart("b"), IMAGE, TextPart(" c"), leading_space=1.0)
    assert spelt(row).startswith("a<|endofchunk|><image> b<|endofchunk|><image> c<|endofchunk|>")


def test_a_long_document_is_cut_and_loses_the_pictures_past_the_cut() -> None:
    row = write(IMAGE, TextPart("12345"), IMAGE, TextPart("6"), length=4, window="first")
    assert spelt(row) == "<image>123" and len(row.media) == 1


def test_a_document_with_more_pictures_than_allowed_ends_before_the_next() -> None:
    row = write(IMAGE, TextPart("a"), IMAGE, TextPart("b"), max_media=1, window="first")
    assert spelt(row) == "<image>a<|endofchunk|>" and len(row.media) == 1


ENDS = "<|endofchunk|><|endoftext|>"


def test_an_end_of_text_is_learned_behind_the_last_chunk_unless_the_dataset_wants_none() -> None:
    parts = (IMAGE, TextPart("one"), IMAGE, TextPart("two"))
    row = write(*parts, end_of_text=dataset().end_of_text)
    assert spelt(row) == f"<image>one<|endofchunk|><image>two{ENDS}"
    assert learned(row) == f"one<|endofchunk|>two{ENDS}" and row.media_index[-1] == 1
    assert not spelt(write(*parts)).endswith("<|endoftext|>")


@pytest.mark.parametrize(
    "options",
    [{"length": 10}, {"length": 9}, {"max_media": 1}],
    ids=["cut before it", "cut in the text", "a picture too many"],
)
def test_a_row_that_ends_before_its_document_has_no_end_of_text(options: dict[str, int]) -> None:
    parts = (IMAGE, TextPart("one"), IMAGE, TextPart("two"))
    found = spelt(write(*parts, end_of_text=True, window="first", **options))
    assert "<|endoftext|>" not in found and found.startswith("<image>one<|endofchunk|>")


@pytest.mark.parametrize("last", [IMAGE, TextPart("Why?", learned=False)])
def test_no_end_of_text_stands_behind_what_ends_no_chunk(last: Part) -> None:
    parts = (IMAGE, TextPart("one"), IMAGE, last)
    assert "<|endoftext|>" not in spelt(write(*parts, end_of_text=True))


def test_where_a_chunk_ends_as_a_text_does_one_such_token_is_enough() -> None:
    """IDEFICS and OpenFlamingo, as they are read; and the text of a language model."""
    both = replace(tiny_config(), tokens=SpecialTokens(end_of_text="<|endofchunk|>"))
    row = write(IMAGE, TextPart("one"), writer=RowWriter(TOKENIZER, both), end_of_text=True)
    assert spelt(row) == "<image>one<|endofchunk|>"
    text_only = RowWriter(TOKENIZER, tiny_config(), "<|endoftext|>")
    assert spelt(write(TextPart("a"), writer=text_only, end_of_text=True)) == "a<|endoftext|>"


def test_an_end_of_text_stands_behind_pictures_written_as_text_too() -> None:
    row = write(IMAGE, TextPart("a"), writer=AS_TEXT, end_of_text=True)
    assert spelt(row) == f"<image>a{ENDS}" and learned(row) == f"a{ENDS}"


def test_a_window_that_reaches_the_end_of_its_document_has_its_end_of_text() -> None:
    found = windows(*LONG, length=25, max_media=8, end_of_text=True)
    assert {text.endswith("<|endoftext|>") for text in found} == {True, False}
    last = next(text for text in found if "shot 7" in text)
    assert last.endswith(f"shot 7{ENDS}") and last.count("<image>") == 3


SHOTS = tuple(MediaPart("image", bytes([i])) for i in range(8))
LONG = [part for i in range(8) for part in (SHOTS[i], TextPart(f"shot {i}"))]  # 8 tokens each


def windows(*parts: Part, **options: object) -> dict[str, Row]:
    """All that 60 numbers drawn make of a document."""
    rows = [write(*parts, seed=seed, **options) for seed in range(60)]
    return {spelt(row): row for row in rows}


def test_a_window_of_a_long_document_begins_at_any_chunk_whose_row_is_no_shorter() -> None:
    found = windows(*LONG, length=24, max_media=8)
    chunks = [f"<image>shot {i}<|endofchunk|>" for i in range(8)]
    assert set(found) == {"".join(chunks[i : i + 3]) for i in range(6)}


def test_a_window_has_the_pictures_inside_it_and_its_text_sees_them() -> None:
    for text, row in windows(*LONG, length=20, max_media=8).items():
        first = int(text.partition("shot ")[2][0])
        assert row.media == SHOTS[first : first + 3]
        assert row.media_index == (*[0] * 8, *[1] * 8, *[2] * 4)[: len(row.ids)]


def test_pictures_are_counted_inside_the_window() -> None:
    found = windows(*LONG, max_media=2)
    assert {row.media for row in found.values()} == {SHOTS[i : i + 2] for i in range(7)}
    assert all(text.endswith("<|endofchunk|>") for text in found)


def test_a_document_that_fits_draws_nothing_for_a_window() -> None:
    def next_draw(**options: object) -> float:
        rng = np.random.default_rng(3)
        WRITER.write(Document(tuple(LONG), "made:1"), dataset(**options), rng)
        return rng.random()

    fits = {"length": 65, "max_media": 8}  # with its end of text
    assert next_draw(**fits) == next_draw(**fits, window="first")
    assert next_draw(**fits | {"length": 64}) != next_draw(**fits)


def test_a_window_with_nothing_to_learn_in_it_is_passed_over() -> None:
    read_only = [IMAGE, TextPart("q" * 20, learned=False)]
    found = windows(*read_only, IMAGE, TextPart("learned"), *read_only, length=10)
    assert set(found) == {"<image>learned<|endofchunk|><image>"}


def test_text_before_the_first_picture_begins_one_of_the_windows() -> None:
    parts = (TextPart("a"), IMAGE, TextPart("What?", learned=False), TextPart("A fox"))
    assert {text[:7] for text in windows(*parts, length=12)} == {"a<|endo", "<image>"}
    assert set(windows(*parts, max_media=0)) == {"a<|endofchunk|>"}


@pytest.mark.parametrize("window", ["first", "random"])
def test_the_family_s_begin_stands_before_every_window(window: str) -> None:
    begins = replace(tiny_config(), tokens=SpecialTokens(begin="<|endoftext|>"))
    writer = RowWriter(TOKENIZER, begins)
    found = windows(*LONG, length=9, max_media=8, window=window, writer=writer)
    assert all(text.startswith("<|endoftext|><image>shot ") for text in found)
    assert len(found) == (1 if window == "first" else 8)


@pytest.mark.parametrize(
    "parts",
    [(IMAGE,), (TextPart("x", learned=False),), (IMAGE, TextPart("")), (IMAGE, TextPart(" "))],
)
def test_a_document_with_nothing_to_learn_is_bad(parts: tuple[Part, ...]) -> None:
    with pytest.raises(BadRecord, match="made:1: "):
        write(*parts)


def test_the_marks_of_learned_text_are_taken_out_of_a_user_s_text() -> None:
    assert spelt(write(IMAGE, TextPart("a\ufdd0b\ufdd1"))).startswith("<image>ab<|endofchunk|>")


def test_letters_of_several_tokens_are_learned_whole() -> None:
    row = write(TextPart("é", learned=False), TextPart("漢é"))
    assert learned(row) == "漢é<|endofchunk|>"


def test_where_a_picture_is_written_as_text_learned_text_is_still_known() -> None:
    """flamingo-mini's way: `<image>` is plain text, and neighbours are tokenised together."""
    row = write(IMAGE, TextPart("What?", learned=False), TextPart(" fox"), writer=AS_TEXT)
    assert spelt(row) == "<image>What? fox<|endofchunk|>"
    assert learned(row) == " fox<|endofchunk|>"
    assert set(row.media_index) == {0} and len(row.media) == 1


def test_a_text_that_the_family_takes_for_a_picture_is_a_bad_record() -> None:
    with pytest.raises(BadRecord, match="made:1: this model takes every"):
        write(IMAGE, TextPart("1 < 2"), writer=AS_TEXT)


def test_marks_are_found_again_after_texts_were_joined() -> None:
    assert unmark("a\ufdd0bc\ufdd1d\ufdd0e\ufdd1") == ("abcde", [(1, 3), (4, 5)])


def test_a_token_is_learned_if_a_letter_of_it_is() -> None:
    spans = [(3, 5)]
    places = [(0, 3), (2, 4), (4, 4), (5, 7)]
    assert [touches(place, spans) for place in places] == [False, True, True, False]

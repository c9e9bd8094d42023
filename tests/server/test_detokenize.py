"""Pieces of text go out only when nothing can change them any more."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fakes import TOKENIZER, decode_bytes, text_ids
from flamingo_server.engine.detokenize import Detokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CHARACTERS = st.text("ab é🦩\n", max_size=12)
STOPS = st.lists(st.text("abé🦩", min_size=1, max_size=4), max_size=3)


def pieces(ids: list[int], stop: list[str]) -> list[str]:
    """One piece a token until it stops, then the rest."""
    detokenizer, out = Detokenizer(decode_bytes, stop), []
    for id in ids:
        out.append(detokenizer.push(id))
        if detokenizer.has_stopped:
            break
    return [*out, detokenizer.finish()]


def cut(text: str, stop: list[str]) -> str:
    """`text` as far as it is read, up to the stop string that is complete first."""
    for end in range(len(text) + 1):
        found = [at for s in stop if (at := text[:end].find(s)) >= 0]
        if found:
            return text[: min(found)]
    return text


@given(CHARACTERS, STOPS)
def test_pieces_join_to_the_text_cut_at_the_first_stop(text: str, stop: list[str]) -> None:
    assert "".join(pieces(list(text.encode()), stop)) == cut(text, stop)


@given(CHARACTERS, STOPS)
def test_no_piece_is_ever_taken_back(text: str, stop: list[str]) -> None:
    ids, whole = list(text.encode()), cut(text, stop)
    shown = ""
    for piece in pieces(ids, stop):
        shown += piece
        assert whole.startswith(shown)


@given(st.binary(max_size=24))
def test_bytes_that_are_no_text_still_join_to_what_decoding_at_once_gives(data: bytes) -> None:
    assert "".join(pieces(list(data), [])) == decode_bytes(data)


@given(st.text(max_size=12))
def test_the_real_tokenizer_joins_too(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER.decode)
    joined = "".join(detokenizer.push(id) for id in text_ids(text)) + detokenizer.finish()
    assert joined == text


@pytest.mark.parametrize("character", ["é", "€", "🦩"])
def test_a_character_of_many_bytes_comes_whole(character: str) -> None:
    data = list(character.encode())
    assert pieces(data, []) == [*[""] * (len(data) - 1), character, ""]


def test_half_a_character_at_the_end_is_shown_as_unreadable() -> None:
    assert pieces(list("a🦩".encode()[:3]), []) == ["a", "", "", "\ufffd"]


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    assert pieces(list(b"one END two"), ["END"]) == list("one ") + ["", "", "", ""]


def test_what_only_looked_like_a_stop_string_follows() -> None:
    assert pieces(list(b"ENx"), ["END"]) == ["", "", "ENx", ""]


def test_a_started_stop_string_is_text_once_the_answer_ends() -> None:
    assert pieces(list(b"aEN"), ["END"]) == ["a", "", "", "EN"]


def test_a_stop_string_inside_one_token_cuts_it() -> None:
    words = ["Hello ", "world. Next"]
    detokenizer = Detokenizer(lambda ids: "".join(words[id] for id in ids), ["."])
    assert [detokenizer.push(0), detokenizer.push(1)] == ["Hello ", "world"]
    assert detokenizer.has_stopped and detokenizer.finish() == ""


def test_nothing_comes_after_a_stop() -> None:
    detokenizer = Detokenizer(decode_bytes, ["."])
    detokenizer.push(ord("."))
    assert detokenizer.push(ord("a")) == "" and detokenizer.finish() == ""


def test_characters_of_many_byte_tokens_stay_whole_however_many_follow() -> None:
    """LLaMA's tokenizer spells what it does not know byte by byte."""
    tokenizer = Tokenizer.from_file(str(GOLDEN / "idefics_qkln" / "tokenizer.json"))
    text = "a 🦩🦩🦩 b 🐈‍⬛ é"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(tokenizer.decode)
    assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == tokenizer.decode(ids)

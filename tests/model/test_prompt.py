"""Parts become tokens in order, and text is only ever text unless it asks for more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from flamingo_model.config import SpecialTokens
from flamingo_model.prompt import (
    LONGEST_REMEMBERED,
    MediaPart,
    Part,
    PromptError,
    PromptRenderer,
    TextPart,
)
from tiny import tiny_tokenizer

END_OF_TEXT, END_OF_CHUNK, IMAGE = range(3)
TOKENIZER = tiny_tokenizer()
RENDERER = PromptRenderer(TOKENIZER, SpecialTokens())
SPECIALS = ("<image>", "<|endofchunk|>", "<|endoftext|>")


def decoded(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("token", SPECIALS)
def test_special_tokens_in_text_are_plain_bytes(token: str) -> None:
    ids = RENDERER.render([TextPart(f"a {token} b")]).token_ids
    assert min(ids) > IMAGE and len(ids) == len(token) + 4
    assert decoded(ids) == f"a {token} b"


@given(st.text(min_size=1), st.sampled_from(SPECIALS), st.text())
def test_no_text_becomes_a_special_token(before: str, token: str, after: str) -> None:
    text = before + token + after
    ids = RENDERER.render([TextPart(text)]).token_ids
    assert min(ids) > IMAGE and len(ids) == len(text.encode())
    assert decoded(ids) == text


def test_special_tokens_are_single_tokens_when_asked_for() -> None:
    text = TextPart("a<|endofchunk|>b<|endoftext|>", special_tokens=True)
    ids = RENDERER.render([text]).token_ids
    assert [i for i in ids if i <= IMAGE] == [END_OF_CHUNK, END_OF_TEXT]
    assert len(ids) == 4


def test_asking_in_one_part_does_not_ask_in_the_next() -> None:
    parts = [TextPart("<|endofchunk|>", special_tokens=True), TextPart("<|endofchunk|>")]
    for ids in (RENDERER.render(parts).token_ids, RENDERER.render(parts).token_ids):
        assert ids[0] == END_OF_CHUNK and min(ids[1:]) > IMAGE


def test_parts_keep_their_order() -> None:
    prompt = RENDERER.render([TextPart("a"), MediaPart(), TextPart("bc"), MediaPart(), MediaPart()])
    a, b, c = (TOKENIZER.token_to_id(letter) for letter in "abc")
    assert prompt.token_ids == [a, IMAGE, b, c, IMAGE, IMAGE]
    assert prompt.media_index == [-1, 0, 0, 0, 1, 2]


@given(st.lists(st.one_of(st.builds(MediaPart), st.builds(TextPart, st.text()))))
def test_a_prompt_has_as_many_pictures_as_media_parts(parts: list[Part]) -> None:
    pictures = sum(isinstance(part, MediaPart) for part in parts)
    if not pictures and not any(isinstance(part, TextPart) and part.text for part in parts):
        return
    prompt = RENDERER.render(parts)
    assert prompt.token_ids.count(IMAGE) == pictures == max(prompt.media_index) + 1
    assert len(prompt.media_index) == len(prompt.token_ids)


@pytest.mark.parametrize("parts", [[], [TextPart("")], [TextPart(""), TextPart("")]])
def test_an_empty_prompt_is_refused(parts: list[Part]) -> None:
    with pytest.raises(PromptError, match="the prompt is empty") as caught:
        RENDERER.render(parts)
    assert caught.value.part is None


def test_a_picture_alone_is_a_prompt() -> None:
    assert RENDERER.render([MediaPart(), TextPart("")]).token_ids == [IMAGE]


def test_an_image_token_in_special_text_is_refused_with_its_part() -> None:
    parts = [MediaPart(), TextPart("<image>"), TextPart("a <image>", special_tokens=True)]
    with pytest.raises(PromptError, match="<image> in a text part has no picture") as caught:
        RENDERER.render(parts)
    assert caught.value.part == 2


def test_an_image_token_cannot_be_put_together_from_two_parts() -> None:
    parts = [TextPart("<ima", special_tokens=True), TextPart("ge>", special_tokens=True)]
    assert IMAGE not in RENDERER.render(parts).token_ids


def test_what_the_tokenizer_puts_around_a_text_is_left_out() -> None:
    """Several parts are one text: a post-processor's start token would stand between them."""
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_OF_TEXT)]
    )
    renderer = PromptRenderer(tokenizer, SpecialTokens())
    parts = [TextPart("a"), TextPart("b", special_tokens=True)]
    assert renderer.render(parts) == RENDERER.render(parts)


def test_a_prompt_begins_as_the_language_model_wants_it() -> None:
    """Once, whatever comes first; and nothing else is a beginning."""
    renderer = PromptRenderer(tiny_tokenizer(), SpecialTokens(begin="<|endoftext|>"))
    for parts in ([TextPart("a"), MediaPart()], [MediaPart(), TextPart("a")]):
        plain, begun = RENDERER.render(parts), renderer.render(parts)
        assert begun.token_ids == [0, *plain.token_ids]
        assert begun.media_index == [-1, *plain.media_index]
    with pytest.raises(PromptError, match="the prompt is empty"):
        renderer.render([])


def test_a_tokenizer_without_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the special token <s>"):
        PromptRenderer(tiny_tokenizer(), SpecialTokens(begin="<s>"))


def test_rendering_leaves_the_tokenizer_as_it_was() -> None:
    tokenizer = tiny_tokenizer()
    PromptRenderer(tokenizer, SpecialTokens()).render([TextPart("<image>")])
    assert tokenizer.encode("<image>").ids == [IMAGE]


def test_a_tokenizer_without_the_image_token_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the special token <picture>"):
        PromptRenderer(TOKENIZER, SpecialTokens(image="<picture>"))


@given(st.text(max_size=2), st.booleans())
def test_a_text_seen_before_has_the_same_tokens(text: str, special_tokens: bool) -> None:
    part, fresh = TextPart(text + "x", special_tokens), PromptRenderer(TOKENIZER, SpecialTokens())
    alone = fresh.render([part])
    assert RENDERER.render([part, part]).token_ids == 2 * alone.token_ids
    RENDERER.render([part]).token_ids.clear()  # an answer is the caller's own
    assert RENDERER.render([part]) == alone


def test_short_texts_are_tokenised_once_and_long_ones_never_kept() -> None:
    renderer, long = PromptRenderer(TOKENIZER, SpecialTokens()), "b" * (LONGEST_REMEMBERED + 1)
    for text in ("a", "a", long, long):
        assert len(renderer.render([TextPart(text)]).token_ids) == len(text)
    kept = renderer.remembered.cache_info()
    assert (kept.currsize, kept.hits, kept.misses) == (1, 1, 1)

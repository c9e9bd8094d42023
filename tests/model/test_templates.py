"""Examples become the text a family was trained with, and a field is only ever text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_model.config import TEMPLATE_FAMILIES, SpecialTokens
from flamingo_model.prompt import MediaPart, Part, PromptRenderer, TextPart
from flamingo_model.templates import FAMILIES, PAPER_SHOTS, Template, TemplateError, Templates
from tiny import tiny_tokenizer

SPECIAL = ("<|endoftext|>", "<|endofchunk|>", "<image>", "<answer>", "<end_of_utterance>")
IMAGE = 2
QUESTION = "Is it {old}?"
FIELDS = {
    "caption": [{"caption": "A cat."}, {}],
    "vqa": [{"question": "Who?", "answer": "me"}, {"question": QUESTION}],
    "classify": [{"label": "cat"}, {}],
    "hateful_memes": [{"text": "ha", "label": "no"}, {"text": "ho"}],
}
TURNS = [
    [{"question": "Who?", "answer": "me"}, {"question": "Why?", "answer": "so"}],
    [{"question": "What?", "answer": "it"}, {"question": "How?"}],
]
BELOW = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
WRITTEN = {
    ("paper", "caption"): "<image> Output: A cat.<|endofchunk|><image> Output:",
    ("paper", "vqa"): "<image> Question: Who? Answer: me<|endofchunk|>"
    "<image> Question: Is it {old}? Answer:",
    ("paper", "classify"): "<image> Output: cat<|endofchunk|><image> Output:",
    ("paper", "hateful_memes"): '<image> is an image with written: "ha" on it. Is it hateful? '
    'Answer: no<|endofchunk|><image> is an image with written: "ho" on it. Is it hateful? Answer:',
    ("paper", "dialogue"): "<image> Question: Who? Answer: me Question: Why? Answer: so"
    "<|endofchunk|><image> Question: What? Answer: it Question: How? Answer:",
    ("openflamingo", "caption"): "<image>Output:A cat.<|endofchunk|>\n<image>Output:",
    ("openflamingo", "vqa"): "<image>Question:Who? Short answer:me<|endofchunk|>\n"
    "<image>Question:Is it {old}? Short answer:",
    ("openflamingo", "classify"): "<image>Output:cat<|endofchunk|><image>Output:",
    ("openflamingo", "hateful_memes"): "<image>is an image with: 'ha' written on it. "
    "Is it hateful? Answer:no<|endofchunk|>"
    "<image>is an image with: 'ho' written on it. Is it hateful? Answer:",
    ("otter", "caption"): "<image>User: What does the image describe? GPT:<answer> A cat."
    "<|endofchunk|><image>User: What does the image describe? GPT:<answer>",
    ("otter", "vqa"): "<image>User: Who? GPT:<answer> me<|endofchunk|>"
    "<image>User: Is it {old}? GPT:<answer>",
    ("otter", "dialogue"): "<image>User: Who? GPT:<answer> me<|endofchunk|>"
    "User: Why? GPT:<answer> so<|endofchunk|><image>User: What? GPT:<answer> it<|endofchunk|>"
    "User: How? GPT:<answer>",
    ("idefics", "caption"): "User:<image>Describe this image.\nAssistant: A cat.\n"
    "User:<image>Describe this image.\nAssistant:",
    ("idefics", "vqa"): "Instruction: Provide an answer to the question. Use the image to answer.\n"
    "<image>Question: Who? Answer: me\n<image>Question: Is it {old}? Answer:",
    ("idefics", "classify"): "<image>Category: cat\n<image>Category:",
    ("idefics", "dialogue"): "User:<image>Who?<end_of_utterance>\nAssistant: me<end_of_utterance>"
    "\nUser: Why?<end_of_utterance>\nAssistant: so<end_of_utterance>"
    "User:<image>What?<end_of_utterance>\nAssistant: it<end_of_utterance>"
    "\nUser: How?<end_of_utterance>\nAssistant:",
    ("flamingo_mini", "caption"): "<image>A cat.<|endofchunk|><image>",
    ("multimodal_gpt", "vqa"): f"{BELOW}\n\n### Image:\n<image>\n\n### Instruction:\nWho?\n\n"
    "### Response:\nme<|endofchunk|>\n\n### Image:\n<image>\n\n### Instruction:\nIs it {old}?\n\n"
    "### Response:\n",
    ("multimodal_gpt", "dialogue"): f"{BELOW}\n\n### Image:\n<image>\n\n### Instruction:\nWho?\n\n"
    "### Response:\nme\n\n### Instruction:\nWhy?\n\n### Response:\nso<|endofchunk|>\n\n"
    "### Image:\n<image>\n\n### Instruction:\nWhat?\n\n### Response:\nit\n\n"
    "### Instruction:\nHow?\n\n### Response:\n",
    ("emoji", "caption"): "<image>Output: A cat.<|endofchunk|><image>Output:",
    ("emoji", "vqa"): "<image>Question: Who? Answer: me<|endofchunk|>"
    "<image>Question: Is it {old}? Answer:",
    ("emoji", "classify"): "<image>This is a cat.<|endofchunk|><image>This is a",
}
ALL = [(family, task) for family in FAMILIES for task in FAMILIES[family]]


def templates(family: str = "paper") -> Templates:
    return Templates(family, SpecialTokens(), SPECIAL)


def custom(text: str) -> Template:
    return templates().custom(text)


def shot(family: str, task: str) -> list[Part]:
    if task == "dialogue":
        return templates(family).task(task).render(TURNS[:1], TURNS[1])
    example, query = FIELDS[task]
    return templates(family).task(task).render([[example]], [query])


def written(parts: list[Part]) -> str:
    return "".join("<image>" if isinstance(part, MediaPart) else part.text for part in parts)


@pytest.mark.parametrize(("family", "task"), WRITTEN, ids=map("-".join, WRITTEN))
def test_a_prompt_is_worded_as_published(family: str, task: str) -> None:
    assert written(shot(family, task)) == WRITTEN[family, task]


@pytest.mark.parametrize(("family", "task"), ALL, ids=map("-".join, ALL))
def test_every_family_has_every_task(family: str, task: str) -> None:
    parts = shot(family, task)
    assert sum(isinstance(part, MediaPart) for part in parts) == 2
    special = {p.text for p in parts if isinstance(p, TextPart) and p.special_tokens}
    assert special <= {"<|endofchunk|>", "<answer>", "<end_of_utterance>"}
    assert set(FAMILIES[family]) == {*FIELDS, "dialogue"}


def test_a_config_may_name_the_families_there_are() -> None:
    assert tuple(FAMILIES) == TEMPLATE_FAMILIES


def test_text_that_touches_is_one_part() -> None:
    parts = shot("emoji", "classify")
    end = TextPart("<|endofchunk|>", special_tokens=True)
    this, open_end = TextPart("This is a cat."), TextPart("This is a")
    assert parts == [MediaPart(), this, end, MediaPart(), open_end]


def test_zero_shot_examples_are_words_alone() -> None:
    shots = [[{"caption": text}] for text in PAPER_SHOTS]
    parts = templates().task("caption").render(shots, [{}], text_only_examples=True)
    assert written(parts) == (
        "Output: This is a cat wearing sunglasses.<|endofchunk|>"
        "Output: Three elephants walking in the savanna.<|endofchunk|><image> Output:"
    )
    demos = [[{"question": "Who?", "answer": "me"}]] * 2
    task = templates("openflamingo").task("vqa")
    assert written(task.render(demos, [{"question": "Why?"}], text_only_examples=True)) == (
        "Question:Who? Short answer:me<|endofchunk|>\n" * 2 + "<image>Question:Why? Short answer:"
    )


def test_a_checkpoint_has_its_own_end_of_chunk() -> None:
    tokens = SpecialTokens(image="<pic>", end_of_chunk="<EOC>")
    family = Templates("paper", tokens, ["<pic>", "<EOC>"])
    parts = family.task("caption").render([[{"caption": "a"}]], [{}])
    assert parts[2] == TextPart("<EOC>", special_tokens=True)
    assert family.custom("<pic>{a}").example[0].kind == "media"


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{word}", [{"word": "a"}, {}], "<image>a<|endofchunk|><image>"),
        ("It is {{{word}}}", [{"word": "a"}, {}], "<image>It is {a}<|endofchunk|><image>It is {"),
        ("a<image>b{c}", [{"c": "x"}, {}], "a<image>bx<|endofchunk|>a<image>b"),
        ("{a}<|endofchunk|>;", [{"a": "x"}, {}], "<image>x<|endofchunk|>;<image>"),
        (
            "{a} is {b}, so {a}",
            [{"a": "x", "b": "y"}, {"a": "z"}],
            "<image>x is y, so x<|endofchunk|><image>z is",
        ),
        ("Hi", [{}, {}], "<image>Hi<|endofchunk|><image>Hi"),
        (
            "{a} is {b}",
            [{"a": "x", "b": "y"}, {"a": "z"}],
            "<image>x is y<|endofchunk|><image>z is",
        ),
        (
            "{a}:<answer>",
            [{"a": "x"}, {"a": "y"}],
            "<image>x:<answer><|endofchunk|><image>y:<answer>",
        ),
    ],
)
def test_a_custom_template_is_filled_in(
    template: str, values: list[dict[str, str]], text: str
) -> None:
    example, query = values
    assert written(custom(template).render([[example]], [query])) == text


@pytest.mark.parametrize(
    "template",
    ["{a.b}", "{a[0]}", "{a!r}", "{a:>10}", "{}", "{0}", "{", "}", "{{a}", "{a }", "{é}", "{a\n}"],
)
def test_braces_hold_plain_names_only(template: str) -> None:
    with pytest.raises(TemplateError, match="a lone brace at character") as caught:
        custom(template)
    assert caught.value.place == "task.template"


@pytest.mark.parametrize("template", ["<image><image>", "{image}", "{fps}", "{a}" * 33])
def test_a_template_that_cannot_be_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        custom(template)


@pytest.mark.parametrize(
    ("examples", "query", "place"),
    [
        ([{"question": "a"}], {"question": "b"}, "examples[0].answer"),
        ([{"answer": "a"}], {"question": "b"}, "examples[0].question"),
        ([{"question": "a", "answer": "b", "x": "c"}], {"question": "b"}, "examples[0].x"),
        ([], {}, "query.question"),
        ([], {"question": "a", "answer": "b"}, "query.answer"),
        ([], {"question": "a", "label": "b"}, "query.label"),
    ],
)
def test_a_missing_or_unknown_field_is_named(
    examples: list[dict[str, str]], query: dict[str, str], place: str
) -> None:
    with pytest.raises(TemplateError) as caught:
        templates().task("vqa").render([[example] for example in examples], [query])
    assert caught.value.place == place


def test_a_missing_field_of_a_turn_is_named() -> None:
    with pytest.raises(TemplateError) as caught:
        templates().task("dialogue").render([], [{"question": "a"}, {"question": "b"}])
    assert caught.value.place == "query.turns[0].answer"
    with pytest.raises(TemplateError, match="at least one turn"):
        templates().task("dialogue").render([], [])


def test_an_unknown_task_or_family_is_refused() -> None:
    with pytest.raises(TemplateError, match="'rhyme' is not known"):
        templates().task("rhyme")
    with pytest.raises(ValueError, match="templates 'x' is not known"):
        templates("x")


def test_a_task_whose_marker_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(TemplateError, match="needs <answer>"):
        Templates("otter", SpecialTokens(), SPECIAL[:3]).task("vqa")


VALUES = st.text() | st.sampled_from([*SPECIAL, "{question}", "{{", "<ima", "ge>", "\0"])


@given(st.lists(st.tuples(VALUES, VALUES), max_size=3), VALUES, st.sampled_from(sorted(FAMILIES)))
def test_a_field_value_is_only_ever_text(
    examples: list[tuple[str, str]], question: str, family: str
) -> None:
    filled = [[{"question": q, "answer": a}] for q, a in examples]
    parts = templates(family).task("vqa").render(filled, [{"question": question}])
    plain = (
        templates(family)
        .task("vqa")
        .render([[{"question": "q", "answer": "a"}]] * len(filled), [{"question": "q"}])
    )
    assert [p for p in parts if p in SPECIALS] == [p for p in plain if p in SPECIALS]
    rendered = PromptRenderer(tiny_tokenizer(), SpecialTokens()).render(parts)
    assert rendered.token_ids.count(IMAGE) == len(examples) + 1


SPECIALS = [MediaPart(), *(TextPart(token, special_tokens=True) for token in SPECIAL)]

"""Beam search gives what `generate` of the installed transformers gives for the same network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from beams import LogProbs, finished, processed, remembered
from flamingo_server.engine.beam import BeamOptions, BeamSearch, Hypothesis, never

VOCAB, PAD = 40, 1  # transformers takes a pad of 0 for none
PROMPT = [7, 11, 3, 29]
PENALTIES = [-2.0, 0.0, 1.0, 2.0]
STOPPING: list[Any] = [False, True, "never"]
PROCESSORS: list[dict[str, Any]] = [
    {},
    {"min_new_tokens": 4},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.4},
]
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.7}
OPT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 24,
    "init_std": 0.7,
}


@cache
def network(kind: str) -> Any:
    torch.manual_seed(5)
    if kind == "gpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCAB, **GPT2)).eval()
    return hf.OPTForCausalLM(hf.OPTConfig(vocab_size=VOCAB, **OPT)).eval()


@cache
def whole_forward(kind: str) -> LogProbs:
    @torch.no_grad()
    def forward(beams: list[tuple[int, ...]]) -> Tensor:
        logits = network(kind)(torch.tensor([[*PROMPT, *beam] for beam in beams])).logits
        rows: Tensor = logits[:, -1].log_softmax(-1)
        return rows

    return remembered(forward)


@cache
def emitted(kind: str) -> list[int]:
    """Tokens in the order in which six beams come to say them."""
    told = finished(BeamSearch(BeamOptions(6, 6, 12), len(PROMPT), []), whole_forward(kind))
    ranked = [i for step in zip(*(h.token_ids for h in told), strict=True) for i in step]
    return list(dict.fromkeys(ranked))


class Ends(hf.StoppingCriteria):
    """As a stop string does: looks at what was generated, row by row."""

    def __init__(self, ends_text: Any) -> None:
        self.ends_text = ends_text

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        generated = input_ids[:, len(PROMPT) :].tolist()
        return torch.tensor([self.ends_text(ids) for ids in generated])


def theirs(
    kind: str, options: BeamOptions, stop_ids: list[int], ends_text: Any, rules: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    told = network(kind).generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        num_beams=options.num_beams,
        num_return_sequences=options.n,
        max_new_tokens=options.max_tokens,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        eos_token_id=stop_ids,
        pad_token_id=PAD,
        do_sample=False,
        stopping_criteria=hf.StoppingCriteriaList([Ends(ends_text)]),
        return_dict_in_generate=True,
        output_scores=True,
        **rules,
    )
    return told.sequences[:, len(PROMPT) :], getattr(told, "sequences_scores", None)


def compare(
    kind: str,
    options: BeamOptions,
    stop_ids: list[int],
    ends_text: Any = never,
    rules: dict[str, Any] | None = None,
) -> list[Hypothesis]:
    rules = rules or {}
    sequences, scores = theirs(kind, options, stop_ids, ends_text, rules)
    log_probs = processed(whole_forward(kind), PROMPT, stop_ids, **rules)
    found = finished(BeamSearch(options, len(PROMPT), stop_ids, ends_text), log_probs)
    assert len(found) == options.n
    for hypothesis, expected in zip(found, sequences.tolist(), strict=True):
        length = len(hypothesis.token_ids)
        assert list(hypothesis.token_ids) == expected[:length]
        assert set(expected[length:]) <= {PAD}
    if scores is not None:
        torch.testing.assert_close(
            torch.tensor([h.score for h in found]), scores, rtol=1e-5, atol=1e-5
        )
    return found


def searches(width: int) -> Iterator[tuple[BeamOptions, dict[str, Any], int]]:
    """Every penalty with every way to stop; processors, `n` and the number of stops go round."""
    for number, (penalty, stopping) in enumerate(product(PENALTIES, STOPPING)):
        options = BeamOptions(width, 1 + number % width, 10, penalty, stopping)
        rules = PROCESSORS[(number + number // 4 + width) % 4]
        yield options, {} if width == 1 else rules, 1 + (number + width) % 2


@pytest.mark.parametrize("width", range(1, 7))
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_sequences_and_scores_are_those_of_generate(kind: str, width: int) -> None:
    """The end tokens are such as the beams say, so that many of them end. One beam is greedy."""
    reasons = []
    for number, (options, rules, num_stops) in enumerate(searches(width)):
        first = 2 + number % 8
        stop_ids = emitted(kind)[first : first + num_stops]
        reasons += [h.finish_reason for h in compare(kind, options, stop_ids, rules=rules)]
    assert reasons.count("stop") >= 5


@pytest.mark.parametrize("stopping", STOPPING)
def test_text_that_ends_a_hypothesis_does_so_in_generate(stopping: Any) -> None:
    """Some pairs of tokens are stop strings here; one end token besides."""
    said = emitted("gpt2")

    def ends_text(ids: Sequence[int]) -> bool:
        return len(ids) > 1 and (ids[-1] * 3 + ids[-2]) % 5 == 0

    reasons = []
    for penalty in PENALTIES:
        options = BeamOptions(4, 4, 10, penalty, stopping)
        reasons += [h.finish_reason for h in compare("gpt2", options, said[9:10], ends_text)]
    assert reasons.count("stop") >= 4

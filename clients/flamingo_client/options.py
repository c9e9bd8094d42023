"""What can be asked of one request. The server owns the defaults and the ranges."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict

from flamingo_client.parts import Shot


class ChoicesConstraint(TypedDict):
    """The answer is one of these strings."""

    choices: Sequence[str]


class RegexConstraint(TypedDict):
    """The whole answer matches this pattern."""

    regex: str


class JsonSchemaConstraint(TypedDict):
    """The answer is JSON that this schema accepts."""

    json_schema: Mapping[str, object]


Constraint: TypeAlias = ChoicesConstraint | RegexConstraint | JsonSchemaConstraint


class TemplateTask(TypedDict):
    """A task in a template of your own: `{name}` is a field, `<image>` the picture."""

    template: str


class PromptOptions(TypedDict, total=False):
    """Options of every request. None means the server's default and is not sent.

    `task`, `query`, `examples` and `zero_shot` stand in for the prompt: the server words it.

    `adapter` is a name that `adapters()` lists; without one the base model answers.
    `deadline_ms` is milliseconds from arrival; what the server computed for a prompt is used again
    only by requests of the same `cache_salt`.
    """

    task: str | TemplateTask | None
    query: Shot | None
    examples: Sequence[Shot] | None
    zero_shot: bool | None
    model: str | None
    adapter: str | None
    priority: int | None
    deadline_ms: int | None
    cache_salt: str | None


class GenerateOptions(PromptOptions, total=False):
    """Options of `generate` and `stream`.

    `logprobs` and `prompt_logprobs` are the number of alternatives per token, `temperature` 0 is
    greedy, `num_beams` above 1 is beam search, and `length_penalty`, `early_stopping`, `score_rule`
    and `stream_hypotheses` are for it alone.
    """

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    n: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    score_rule: Literal["generated", "total"] | None
    stream_hypotheses: bool | None
    constraint: Constraint | None


class ClassifyOptions(PromptOptions, total=False):
    """Options of `classify`.

    `ensemble` averages over so many orders of the examples, drawn with `seed`; `calibrate` divides
    each likelihood by the one with a grey picture in place of the last.
    """

    normalize: Literal["sum", "mean"] | None
    ensemble: int | None
    seed: int | None
    calibrate: bool | None


class ScoreOptions(PromptOptions, total=False):
    """Options of `score`."""


class EmbeddingsOptions(TypedDict, total=False):
    """Options of `embeddings`."""

    model: str | None


Options: TypeAlias = GenerateOptions | ClassifyOptions | ScoreOptions | EmbeddingsOptions


def fields_from(options: Options, kind: type[Options] = GenerateOptions) -> dict[str, object]:
    """The request fields the options mean. Raises TypeError for an option `kind` does not have."""
    unknown = sorted(options.keys() - kind.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown option: {', '.join(unknown)}")
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    return given

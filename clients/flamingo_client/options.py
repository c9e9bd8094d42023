"""What can be asked of one generation. The server owns the defaults and the ranges."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

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


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` and `stream`. None means the server's default and is not sent.

    `task`, `query`, `examples` and `zero_shot` stand in for the prompt: the server words it.

    `logprobs` and `prompt_logprobs` are the number of alternatives per token, `deadline_ms` is
    milliseconds from arrival, `temperature` 0 is greedy, `num_beams` above 1 is beam search.
    """

    task: str | TemplateTask | None
    query: Shot | None
    examples: Sequence[Shot] | None
    zero_shot: bool | None
    model: str | None
    adapter: str | None
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
    early_stopping: bool | None
    stream_hypotheses: bool | None
    constraint: Constraint | None
    priority: int | None
    deadline_ms: int | None
    cache_salt: str | None


def fields_from(options: GenerateOptions) -> dict[str, object]:
    """The request fields the options mean. Raises TypeError for an option that does not exist."""
    unknown = sorted(options.keys() - GenerateOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown option: {', '.join(unknown)}")
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    return given

"""What a checkpoint of each family does not say of itself. Imports nothing: helps are quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """What is given beside a checkpoint; each is None where it is not.

    `lm` and `vision` are folders or repositories of the hub: the language model and the CLIP
    beneath. `cross_attention_interval` is `cross_attn_every_n_layers` of training, `lora` a file
    of low-rank updates. `media_rule` takes the place of the checkpoint's own, in any family.
    """

    lm: str | None = None
    vision: str | None = None
    cross_attention_interval: int | None = None
    lora: str | None = None
    media_rule: str | None = None

    def given(self) -> list[str]:
        return [name for name, value in vars(self).items() if value is not None]


@dataclass(frozen=True)
class Takes:
    """Names of the parts that a family must have, and of those that it may have.

    `is_file`: the checkpoint is one file, not a folder. Without `has_weights_beneath` the language
    model gives its tokenizer and its config only, since its weights are in the checkpoint.
    """

    needs: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    is_file: bool = False
    has_weights_beneath: bool = False

    @classmethod
    def trained_only(cls, *may_have: str) -> Takes:
        """A file with what was trained, over a language model and a CLIP."""
        needs = ("lm", "vision", "cross_attention_interval")
        return cls(needs, may_have, is_file=True, has_weights_beneath=True)


PARTS = tuple(Parts.__dataclass_fields__)
FAMILIES = {
    "native": Takes(),
    "idefics": Takes(),
    "openflamingo": Takes.trained_only(),
    "openflamingo-v1": Takes.trained_only("lora"),
    "otter": Takes(may_have=("lm",)),
    "otter-weights": Takes.trained_only(),
    "flamingo-mini": Takes(("lm", "vision")),
}


def misfit(family: str, given: list[str]) -> str | None:
    """What to say of parts that a family lacks or has no use for; "auto" may have all."""
    if family == "auto":
        return None
    if family not in FAMILIES:
        return f"{family!r} is not known; known: auto, {', '.join(FAMILIES)}"
    takes = FAMILIES[family]
    if lacking := [name for name in takes.needs if name not in given]:
        return f"{family} needs {', '.join(lacking)}"
    known = (*takes.needs, *takes.may_have, "media_rule")
    if useless := [name for name in given if name not in known]:
        return f"{family} has no use for {', '.join(useless)}"
    return None

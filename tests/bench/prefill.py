"""Time to the first token: cold, warm, and how it grows with the shots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.measure import Figure, Side, Times, alternate, ratio
from bench.ours import Ours
from bench.prompts import Prompt, prompt
from bench.stage import Stage

SHOTS = (0, 4, 8, 16, 32)
QUICK_SHOTS = (0, 8, 16, 32)
NUM_WARM = 5  # samples a round
ROUNDS = 5  # a prompt takes seconds, in which the machine is seldom left alone
IN_TURN = 30  # questions


@dataclass(frozen=True)
class FirstTokens:
    """Times by who and how many shots: "OpenFlamingo 16", "ours cold 16", "fastest warm 0"."""

    times: dict[str, Times]

    def __getitem__(self, name: str) -> Times:
        return self.times.get(name, Times(problem="not measured"))

    def figures(self) -> Iterator[Figure]:
        yield self.warm_shots()
        yield self.warm_against_peer()
        yield self.cold("float32", "ours", "≤ 0.8")
        yield self.cold("fastest type", "fastest", "≤ 1/3")
        yield self.growth()
        yield self.new_picture()

    def warm_shots(self) -> Figure:
        name = "warm 16-shot time to first token ÷ warm 0-shot"
        how = "all pictures known, the question new"
        return ratio(name, "≤ 1.2", self["ours warm 16"], self["ours warm 0"], how)

    def warm_against_peer(self) -> Figure:
        name = "warm 16-shot time to first token ÷ OpenFlamingo's"
        return ratio(name, "≤ 1/20", self["ours warm 16"], self["OpenFlamingo 16"])

    def cold(self, dtype: str, who: str, must: str) -> Figure:
        name = f"cold 16-shot time to first token, {dtype} ÷ OpenFlamingo's"
        return ratio(name, must, self[f"{who} cold 16"], self["OpenFlamingo 16"])

    def growth(self) -> Figure:
        name = "growth of cold prefill from 8 to 32 shots"
        how = "time to first token; 33 pictures against 9"
        return ratio(name, "≤ 4.4", self["ours cold 32"], self["ours cold 8"], how)

    def new_picture(self) -> Figure:
        name = "warm 16 shots with a new query picture ÷ warm 0-shot with one"
        return ratio(name, "", self["ours new picture 16"], self["ours cold 0"])


def measure(stage: Stage) -> FirstTokens:
    """In each round every side meets new prompts; the warm ones follow the cold.

    Those whose ratio should be near 1 are asked behind all rounds, in turn.
    """
    sides: dict[str, Side] = {}
    for num in QUICK_SHOTS if stage.is_quick else SHOTS:
        if not stage.is_quick or num in (0, 16):
            sides[f"OpenFlamingo {num}"] = peer_side(stage, num)
        sides |= our_sides("ours", stage.plain, num)
        if num in (0, 16):
            sides |= our_sides("fastest", stage.fast, num)
    in_turn = {f"ours warm {num}": question_side(stage.plain, num) for num in (0, 16)}
    sides = {name: side for name, side in sides.items() if name not in in_turn}
    times = alternate(sides, 1 if stage.is_quick else ROUNDS, stage.watch)
    return FirstTokens(times | alternate(in_turn, 3 if stage.is_quick else IN_TURN, stage.watch))


def peer_side(stage: Stage, num_shots: int) -> Side:
    return lambda number: [stage.peer.generate(fresh(number, num_shots), 1)["seconds"]]


def our_sides(who: str, ours: Ours, num_shots: int) -> dict[str, Side]:
    def cold(number: int) -> list[float]:
        return [ours.first_token(fresh(number, num_shots))]

    def warm(number: int) -> list[float]:
        known, first = fresh(number, num_shots), 1_000_000 * (number + 1)
        return [ours.first_token(known.asking(first + i)) for i in range(NUM_WARM)]

    def new_picture(number: int) -> list[float]:
        known = fresh(number, num_shots)
        return [ours.first_token(known.showing(2_000_000 + number))]

    sides = {f"{who} cold {num_shots}": cold, f"{who} warm {num_shots}": warm}
    return sides | ({f"{who} new picture {num_shots}": new_picture} if num_shots == 16 else {})


def question_side(ours: Ours, num_shots: int) -> Side:
    known = fresh(0, num_shots)

    def ask(number: int) -> list[float]:
        if number == 0:
            ours.first_token(known)
        return [ours.first_token(known.asking(3_000_000 + number))]

    return ask


def fresh(number: int, num_shots: int) -> Prompt:
    return prompt(100 * (number + 1) + num_shots, num_shots)

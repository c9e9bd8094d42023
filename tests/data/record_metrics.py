"""Writes `recorded_metrics.json`: 200 captions and 200 answers, and what the official tools say.

    pip install pycocoevalcap                   # CIDEr; its tokenizer needs java
    pip download --no-deps open-flamingo==0.0.2 # its vqa_metric.py is the official VQA evaluation;
                                                # later ones normalise where all people agree, too
    python tests/data/record_metrics.py .../open_flamingo/eval/vqa_metric.py

The texts are made up from a seed: what captions and answers look like, and what is hard in them.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("recorded_metrics.json")
NUM = 200
THINGS = (
    "man|woman|dog|black cat|group of people|surfer|double-decker bus|train|pizza|teddy bear|zebra"
    "|giraffe|skateboarder|baseball player|kitchen|bird|fire hydrant|child's kite|stop sign|iPhone"
).split("|")
DEEDS = (
    "sitting on|standing next to|riding|holding|looking at|playing with|lying on top of|parked near"
).split("|")
ENDS = [
    *(".", "", " .", " in the snow.", " on a sunny day", " at 3:30 p.m.", " with its owner's hat."),
    *(" that isn't moving.", " which can't be seen.", " (seen from above).", " -- it's late!"),
    *(' and a sign reading "STOP".', " near St. Mary's church.", " ... maybe?", " for $5.99."),
    *(
        " with 3,000 people.",
        " on the 1st of Jan. 2010.",
        " and/or a cup.",
        " on 5th Ave. in town.",
    ),
    *(" at the dogs' park.", " from the 1980's.", "; they're ready to go, nobody's there.", " #1"),
    *(
        " wearing a 'Superman' cape.",
        " & a fork, knife, etc.",
        " in the U.S.",
        " cannot fly.",
        " @",
    ),
    *(
        " at 10:30am",
        " 6'2\" tall",
        " by Mr. Smith.",
        " [blurry].",
        " at 50% off",
        " x-ray",
        " 4x4",
    ),
    *(" it’s “new” – a café…", " ½ eaten", " rock 'n' roll", "\nand more", " R&B band"),
]
ANSWERS = (
    "yes|no|2|two|Two|3.|three|1,000|1000|red|red.|the red one|a dog|dog|dogs|dont|don't|dont know"
    "|isnt|it's|its|T-shirt|t shirt|tshirt|black and white|black & white|black/white|black-white"
    "|ten|10|none|0|zero|10:30|10.30|3.5|$5|5 dollars|an apple|apple|Apple!|left, right|left right"
    "|on table|on the table|(left)|yes?|N/A|shes|she's|youre here|hadnt've|y'allll|ow's'at|\tcat\n"
    "|coca cola|coca-cola|Coca_Cola|a|the|.|,|1,2|u.s.|us|'s|What's up|whats up|9:00 a.m.|9 am"
).split("|")


def caption(dice: random.Random, thing: str, deed: str, other: str) -> str:
    first = dice.choice(["A", "The", "Two", "One", "There is a", "This is a", "a"])
    if dice.random() < 0.3:
        deed = dice.choice(DEEDS)
    if dice.random() < 0.2:
        other = dice.choice(THINGS)
    return f"{first} {thing} {deed} a {other}{dice.choice(ENDS)}"


def captions(dice: random.Random) -> list[dict[str, Any]]:
    found = []
    for _ in range(NUM):
        scene = dice.choice(THINGS), dice.choice(DEEDS), dice.choice(THINGS)
        prediction, *references = (caption(dice, *scene) for _ in range(6))
        found.append({"prediction": prediction, "references": references})
    found[0]["prediction"], found[1]["prediction"] = "", found[1]["references"][0]
    return found


def answers(dice: random.Random) -> list[dict[str, Any]]:
    found = []
    for number in range(NUM):
        some = dice.sample(ANSWERS, dice.choice([1, 2, 3, 5]))
        given = [dice.choice(some) for _ in range(10)]
        near = ANSWERS[(ANSWERS.index(some[0]) + dice.choice([0, 0, 1, -1])) % len(ANSWERS)]
        found.append({"prediction": dice.choice([near, some[0], f"{near} "]), "answers": given})
        if number % 20 == 0:
            found[-1]["answers"] = [some[0]] * 10
    return found


def official_cider(rows: list[dict[str, Any]]) -> list[float]:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenised(texts: list[list[str]]) -> dict[int, list[str]]:
        listed = {i: [{"caption": text} for text in some] for i, some in enumerate(texts)}
        return PTBTokenizer().tokenize(listed)

    references = tokenised([row["references"] for row in rows])
    predictions = tokenised([[row["prediction"]] for row in rows])
    return list(map(float, Cider().compute_score(references, predictions)[1]))


def official_vqa(rows: list[dict[str, Any]], module: Path) -> list[float]:
    spec = importlib.util.spec_from_file_location("vqa_metric", module)
    assert spec is not None and spec.loader is not None
    official: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    truth, said = official.VQA(), official.VQA()
    for number, row in enumerate(rows):
        listed = [{"answer": text, "answer_id": i} for i, text in enumerate(row["answers"])]
        truth.qa[number] = {"answers": listed, "question_type": "x", "answer_type": "y"}
        said.qa[number] = {"answer": row["prediction"]}
    said.getQuesIds = lambda: list(range(len(rows)))
    marked = official.VQAEval(truth, said, n=12)
    marked.evaluate()
    return [marked.evalQA[number] / 100 for number in range(len(rows))]


def lines(values: list[Any]) -> str:
    return ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)


if __name__ == "__main__":
    dice = random.Random(20261123)
    described, answered = captions(dice), answers(dice)
    record = {
        "captions": described,
        "cider": official_cider(described),
        "answers": answered,
        "vqa": official_vqa(answered, Path(sys.argv[1])),
    }
    fields = [f'"{name}": [\n{lines(values)}\n]' for name, values in record.items()]
    OUT.write_text("{\n" + ",\n".join(fields) + "\n}\n")

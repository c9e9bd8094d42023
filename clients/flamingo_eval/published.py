"""Published few-shot figures, to stand beside ours: 0, 4, 8, 16 and 32 shots, chosen at random.

Sources:
- Flamingo: Alayrac et al. 2022 (arXiv 2204.14198), table of few-shot results by model size.
- OpenFlamingo: Awadalla et al. 2023 (arXiv 2308.01390), table 11; the LLaMA one: MODEL_CARD.md of
  github.com/mlfoundations/open_flamingo.
- IDEFICS: the cards huggingface.co/HuggingFaceM4/idefics-80b and idefics-9b.

They are as the project's notes took them from there. Found again in public copies: OpenFlamingo-9B
LLaMA; of OpenFlamingo-9B VQAv2 at 0, 4 and 32 shots; of IDEFICS-80B 0 and 4 shots, of IDEFICS-9B 16
and 32. Flamingo's on Hateful Memes beyond 4 shots were rounded, and are left out.

IDEFICS was trained on COCO's captions, the others were not. Nothing published for NextQA is here:
it is WUPS, and ours an exact match.
"""

from __future__ import annotations

SHOTS = (0, 4, 8, 16, 32)
Figures = tuple[float, ...]  # at SHOTS, as many as are known

PUBLISHED: dict[str, dict[str, Figures]] = {
    "coco": {
        "Flamingo-3B": (73.0, 85.0, 90.6, 95.4, 99.0),
        "Flamingo-9B": (79.4, 93.1, 99.0, 102.2, 106.3),
        "Flamingo-80B": (84.3, 103.2, 108.8, 110.5, 113.8),
        "OpenFlamingo-3B": (74.9, 77.3, 85.9, 89.8, 93.0),
        "OpenFlamingo-4B": (76.7, 81.8, 90.7, 93.9, 95.1),
        "OpenFlamingo-9B": (79.5, 89.0, 96.3, 98.8, 99.5),
        "OpenFlamingo-9B LLaMA": (65.52, 74.28, 79.26, 81.84, 84.52),
        "IDEFICS-9B": (46.0, 93.0, 97.0, 99.7, 98.0),
        "IDEFICS-80B": (91.8, 110.3, 114.3, 116.6, 116.6),
    },
    "flickr30k": {
        "Flamingo-80B": (67.2, 75.1, 78.2, 78.9, 75.4),
        "OpenFlamingo-3B": (52.3, 57.2, 58.6, 59.2, 61.1),
        "OpenFlamingo-4B": (53.6, 60.7, 55.9, 56.8, 56.9),
        "OpenFlamingo-9B": (59.5, 65.8, 62.9, 62.8, 61.3),
        "IDEFICS-9B": (27.3, 59.7, 61.9, 64.5, 64.4),
        "IDEFICS-80B": (53.7, 73.7, 76.6, 80.1, 81.1),
    },
    "vqav2": {
        "Flamingo-3B": (49.2, 53.2, 55.4, 56.7, 57.1),
        "Flamingo-9B": (51.8, 56.3, 58.0, 59.4, 60.4),
        "Flamingo-80B": (56.3, 63.1, 65.6, 66.8, 67.6),
        "OpenFlamingo-3B": (44.6, 45.8, 46.2, 46.6, 47.0),
        "OpenFlamingo-4B": (45.1, 49.0, 48.3, 45.5, 43.0),
        "OpenFlamingo-9B": (52.7, 54.8, 54.8, 54.3, 53.3),
        "OpenFlamingo-9B LLaMA": (43.55, 44.05, 47.5, 48.87, 50.34),
        "IDEFICS-9B": (50.9, 55.4, 56.4, 57.0, 57.9),
        "IDEFICS-80B": (60.0, 63.6, 64.8, 65.4, 65.9),
    },
    "okvqa": {
        "Flamingo-3B": (41.2, 43.3, 44.6, 45.6, 45.9),
        "Flamingo-9B": (44.7, 49.3, 50.0, 50.8, 51.0),
        "Flamingo-80B": (50.6, 57.4, 57.5, 57.8, 57.8),
        "OpenFlamingo-3B": (28.2, 30.3, 31.1, 30.9, 31.0),
        "OpenFlamingo-4B": (30.7, 35.1, 33.9, 28.5, 26.4),
        "OpenFlamingo-9B": (37.8, 40.1, 41.1, 42.7, 42.4),
        "IDEFICS-9B": (38.4, 45.5, 47.7, 48.4, 49.6),
        "IDEFICS-80B": (45.2, 52.4, 55.1, 56.8, 57.8),
    },
    "textvqa": {
        "Flamingo-80B": (35.0, 36.5, 37.3, 37.6, 37.9),
        "OpenFlamingo-3B": (24.2, 27.0, 27.7, 28.0, 28.3),
        "OpenFlamingo-4B": (21.0, 25.9, 21.3, 18.2, 14.1),
        "OpenFlamingo-9B": (24.2, 28.2, 29.1, 27.3, 23.8),
        "IDEFICS-9B": (25.9, 27.6, 27.5, 27.9, 28.3),
        "IDEFICS-80B": (30.9, 34.4, 35.7, 36.3, 36.7),
    },
    "vizwiz": {
        "Flamingo-80B": (31.6, 39.6, 44.8, 48.4, 49.8),
        "OpenFlamingo-3B": (23.7, 27.0, 32.1, 36.1, 39.8),
        "OpenFlamingo-4B": (18.8, 26.6, 28.8, 24.6, 23.1),
        "OpenFlamingo-9B": (27.5, 34.1, 38.5, 42.5, 44.0),
        "IDEFICS-9B": (35.5, 36.9, 40.4, 42.6, 43.7),
        "IDEFICS-80B": (36.0, 40.4, 46.1, 48.3, 50.0),
    },
    "hateful_memes": {
        "Flamingo-80B": (46.4, 68.6),
        "OpenFlamingo-3B": (51.2, 50.6, 52.0, 48.5, 50.2),
        "OpenFlamingo-4B": (52.3, 51.5, 55.2, 54.5, 52.2),
        "OpenFlamingo-9B": (51.6, 54.0, 54.7, 53.9, 53.8),
        "IDEFICS-9B": (51.7, 50.7, 51.0, 50.9, 49.8),
        "IDEFICS-80B": (60.6, 57.8, 58.2, 55.8, 52.5),
    },
}


def figure(task: str, model: str, shots: int) -> float | None:
    """None where nothing is known."""
    known = dict(zip(SHOTS, PUBLISHED.get(task, {}).get(model, ()), strict=False))
    return known.get(shots)

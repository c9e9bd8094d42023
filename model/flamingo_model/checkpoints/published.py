"""The Flamingo-family checkpoints that others have published, and what each is made of."""

from __future__ import annotations

from dataclasses import dataclass

from .families import FAMILIES


@dataclass(frozen=True)
class Published:
    """`name` is the repository on huggingface.co; `weights` its file, or the index of its shards.

    `interval` is the number of language model layers to a cross-attention block. A language model
    with a slash in its name is on the hub, too; `how` is what to do with one that is not.
    """

    name: str
    family: str
    language_model: str
    vision_tower: str
    interval: str
    template: str
    image_size: str
    licence: str
    weights: str
    is_on_hub: bool = True
    how: str = ""

    @property
    def can_load(self) -> bool:
        return self.family in FAMILIES


CLIP_L = "openai/clip-vit-large-patch14"
MPT_7B = "mosaicml/mpt-7b-instruct"  # inside, and where Otter's own code gets its tokenizer
MPT_1B = "mosaicml/mosaic-llama-redpajama-final-candidate"
CLIP_H = "laion/CLIP-ViT-H-14"
LLAMA = "LLaMA (non-commercial)"
OTTER_LLAMA = "MIT tag; LLaMA terms (non-commercial)"
CODE_MIT = "MIT (code); LM's own terms"
SAFE_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


def open_flamingo(name: str, language_model: str, interval: int, family: str) -> Published:
    licence = CODE_MIT if family == "openflamingo" else LLAMA
    weights = (family, language_model, CLIP_L, str(interval), "openflamingo", "224", licence)
    return Published(f"openflamingo/{name}", *weights, "checkpoint.pt")


def otter(name: str, language_model: str, interval: int, licence: str = OTTER_LLAMA) -> Published:
    weights = ("otter", language_model, f"{CLIP_L} (inside)", str(interval), "otter", "224")
    return Published(f"luodian/{name}", *weights, licence, BIN_INDEX)


def mini(name: str, language_model: str) -> Published:
    family = "flamingo-mini"
    row = (family, language_model, CLIP_L, "1", family, "224", "MIT (code)")
    return Published(f"dhansmair/{name}", *row, "pytorch_model.bin")


def idefics(name: str, language_model: str) -> Published:
    template = "idefics-instruct" if name.endswith("instruct") else "idefics"
    row = ("idefics", language_model, CLIP_H, "4", template, "224")
    licence = "MIT (new weights); LLaMA (non-commercial)"
    return Published(f"HuggingFaceM4/{name}", *row, licence, SAFE_INDEX)


def mllama(name: str, language_model: str) -> Published:
    listed = "3, 8, …, 38" if "11B" in name else "listed"
    row = ("mllama", language_model, "own ViT (inside)", listed, "mllama", "tiles of 448 or 560")
    return Published(f"meta-llama/{name}", *row, "Llama 3.2 Community", SAFE_INDEX)


PUBLISHED = (
    Published(
        "embedded",
        "native",
        "own, 6.6M",
        "own convolution net (inside)",
        "1",
        "flamingo",
        "64",
        "Apache-2.0",
        "model.safetensors",
        is_on_hub=False,
    ),
    open_flamingo(
        "OpenFlamingo-3B-vitl-mpt1b", "anas-awadalla/mpt-1b-redpajama-200b", 1, "openflamingo"
    ),
    open_flamingo(
        "OpenFlamingo-3B-vitl-mpt1b-langinstruct",
        "anas-awadalla/mpt-1b-redpajama-200b-dolly",
        1,
        "openflamingo",
    ),
    open_flamingo(
        "OpenFlamingo-4B-vitl-rpj3b",
        "togethercomputer/RedPajama-INCITE-Base-3B-v1",
        2,
        "openflamingo",
    ),
    open_flamingo(
        "OpenFlamingo-4B-vitl-rpj3b-langinstruct",
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
        2,
        "openflamingo",
    ),
    open_flamingo("OpenFlamingo-9B-vitl-mpt7b", "anas-awadalla/mpt-7b", 4, "openflamingo"),
    open_flamingo("OpenFlamingo-9B-deprecated", "LLaMA-7B", 4, "openflamingo-v1"),
    otter("openflamingo-9b-hf", "LLaMA-7B", 4),
    otter("OTTER-Image-MPT7B", MPT_7B, 4, "MIT tag"),
    otter("OTTER-Video-LLaMA7B-DenseCaption", "LLaMA-7B", 4),
    otter("OTTER-Image-LLaMA7B-LA-InContext", "LLaMA-7B", 4, "other; LLaMA terms"),
    otter("OTTER-MPT7B-Init", MPT_7B, 4, "mixed"),
    otter("OTTER-MPT1B-RPJama-Init", MPT_1B, 1, "mixed"),
    otter("OTTER-LLaMA7B-Init", "LLaMA-7B", 4, "mixed"),
    Published(
        "med-flamingo/med-flamingo",
        "openflamingo-v1",
        "decapoda-research/llama-7b-hf",
        CLIP_L,
        "4",
        "openflamingo",
        "224",
        "research; LLaMA (non-commercial)",
        "model.pt",
    ),
    Published(
        "Multimodal-GPT",
        "openflamingo-v1",
        "LLaMA-7B",
        CLIP_L,
        "4",
        "multimodal-gpt",
        "224",
        "Apache-2.0; LLaMA terms",
        "mmgpt-lora-v0-release.pt",
        is_on_hub=False,
        how="give its file as --lora over OpenFlamingo-9B-deprecated, --family openflamingo-v1",
    ),
    mini("flamingo-mini", "facebook/opt-350m"),
    mini("flamingo-tiny", "facebook/opt-125m"),
    idefics("idefics-9b", "LLaMA-7B"),
    idefics("idefics-9b-instruct", "LLaMA-7B"),
    idefics("idefics-80b", "LLaMA-65B"),
    idefics("idefics-80b-instruct", "LLaMA-65B"),
    mllama("Llama-3.2-11B-Vision", "Llama-3.1-8B"),
    mllama("Llama-3.2-11B-Vision-Instruct", "Llama-3.1-8B"),
    mllama("Llama-3.2-90B-Vision", "Llama-3.1-70B"),
    mllama("Llama-3.2-90B-Vision-Instruct", "Llama-3.1-70B"),
)

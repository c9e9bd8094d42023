"""Loading, quantising and converting other families' checkpoints takes what is kept, and no more.

Each is some hundreds of megabytes in the files of its family; an 80B one has only more of them.
"""

import json
from pathlib import Path

import pytest
import transformers as hf
from safetensors.torch import save_file

from families import Case, multimodal_gpt, otter
from golden_sets import GOLDEN
from memory import MIB, convert_opened, load_opened, peak_of, quantise_opened, remember
from published import LLAMA, MPT

CONSTANT = 16 * MIB


def idefics(folder: Path, is_large: bool) -> Case:
    """As transformers saves it, in four shards."""
    values = json.loads((GOLDEN / "idefics_qkln" / "config.json").read_text())
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 10}
    values |= sizes if is_large else {}
    model = hf.IdeficsForVisionText2Text(hf.IdeficsConfig(**values))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    (folder / "config.json").write_text(json.dumps(values))
    words = (GOLDEN / "idefics_qkln" / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(words)
    names = sorted(state)
    shards = {f"model-{i}.safetensors": names[i::4] for i in range(4)}
    for shard, own in shards.items():
        save_file({name: state[name] for name in own}, folder / shard)
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Case(folder)


def in_torch_shards(folder: Path, is_large: bool) -> Case:
    return otter(folder, MPT | {"d_model": 512, "n_layers": 18} if is_large else MPT)


def low_rank(folder: Path, is_large: bool) -> Case:
    large = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16}
    return multimodal_gpt(folder, LLAMA | large if is_large else LLAMA)


MAKERS = [
    low_rank,
    pytest.param(idefics, marks=pytest.mark.slow),
    pytest.param(in_torch_shards, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=MAKERS)
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, int]:
    """Where, bytes of the whole in float32, and of the decoder's layers."""
    folder = tmp_path_factory.mktemp("stored")
    sizes = (0, 0)
    for name in ("small", "large"):
        (folder / name).mkdir()
        case = request.param(folder / name, name == "large")
        remember(folder / name, case)
        layout = case.open().weights.layout
        layers = sum(4 * t.numel() for k, t in layout.items() if k.startswith("decoder.layers."))
        sizes = sum(4 * tensor.numel() for tensor in layout.values()), layers
    return folder, *sizes


Stored = tuple[Path, int, int]


def test_loading_never_holds_two_copies(stored: Stored) -> None:
    folder, size, _ = stored
    assert size > 150 * MIB
    peak = peak_of(load_opened, folder)
    assert 0.9 * size < peak < 1.15 * size + CONSTANT, f"{peak / size:.3f}"


@pytest.mark.slow
def test_quantising_never_holds_the_whole_layers(stored: Stored) -> None:
    pytest.importorskip("bitsandbytes")
    folder, size, layers = stored
    peak = peak_of(quantise_opened, folder)
    assert peak < size - layers + 0.5 * layers + CONSTANT, f"{peak / size:.3f}"


def test_converting_holds_one_tensor_at_a_time(stored: Stored) -> None:
    folder, size, _ = stored
    peak = peak_of(convert_opened, folder)
    shards = list((folder / "large-converted").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in shards) > 0.45 * size
    assert peak < size / 5 + CONSTANT, f"{peak / MIB:.0f} of {size / MIB:.0f} MiB"

"""The one way to a checkpoint: a folder, a file with its parts, or a published name → open, lazy.

Knows which reader a family has, and nothing of any reader's inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .checkpoint import Checkpoint
from .families import Parts
from .flamingo_mini import open_flamingo_mini
from .hub import Download, snapshot_download
from .idefics import open_idefics
from .locating import locate
from .native import open_native
from .openflamingo import open_openflamingo
from .openflamingo_v1 import open_openflamingo_v1
from .otter import open_otter, open_otter_weights
from .weights import CheckpointError

READERS: dict[str, Callable[..., Checkpoint]] = {
    "native": open_native,
    "idefics": open_idefics,
    "openflamingo": open_openflamingo,
    "openflamingo-v1": open_openflamingo_v1,
    "otter": open_otter,
    "otter-weights": open_otter_weights,
    "flamingo-mini": open_flamingo_mini,
}
NO_PARTS = Parts()


def open_checkpoint(
    source: str | Path,
    family: str = "auto",
    parts: Parts = NO_PARTS,
    download: Download = snapshot_download,
) -> Checkpoint:
    """Reads everything but tensors: `load` and `write_folder` take those, one at a time.

    `source` is "embedded", a folder, a file, or a name of `published.py`. Raises CheckpointError
    for what no reader here knows, for a part that is lacking or cannot be fetched, and for all
    that readers refuse.
    """
    found = locate(str(source), family, parts, download)
    opened = READERS[found.family](found.path, **found.parts)
    if found.name is not None:
        opened = replace(opened, config=replace(opened.config, name=found.name))
    return opened if parts.media_rule is None else with_rule(opened, parts.media_rule)


def with_rule(opened: Checkpoint, media_rule: str) -> Checkpoint:
    """Which token sees which media, in place of what the checkpoint was trained with."""
    try:
        changed = replace(opened.config.cross_attention, media_rule=media_rule)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return replace(opened, config=replace(opened.config, cross_attention=changed))

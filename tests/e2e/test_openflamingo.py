"""An OpenFlamingo checkpoint over HTTP: the tokens that the reference chose, from the pictures."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from flamingo_server.config import Settings
from golden_sets import GOLDEN, GoldenSet, Row

from .calls import ask, image, text
from .conftest import Serve

CASES = ["zero_shot", "zero_shot_eval", "two_shot", "four_shot", "text_before", "consecutive"]
CASES += ["text_only"]
SET = GoldenSet(GOLDEN / "of_opt_x1")
PARTS: dict[str, Any] = {
    "lm": str(SET.folder / "lm"),
    "vision": str(GOLDEN / "of_clip_vit" / "hf"),
    "cross_attention_interval": 1,
}

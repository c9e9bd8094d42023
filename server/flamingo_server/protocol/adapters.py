"""What `/v1/adapters` takes and gives."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from ..config import ADAPTER_NAME
from .prompt import Characters, Wire


class LoadRequest(Wire):
    """`path` is one of the server's files, in a folder that its operator allows."""

    name: Annotated[str, Field(pattern=ADAPTER_NAME)]
    path: Annotated[Characters, Field(min_length=1, max_length=4096)]


class AdapterCard(BaseModel):
    """What training wrote of it; `base_digest` names the model it was trained on."""

    base_digest: str
    name: str
    config: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    lora_rank: int | None
    lora_alpha: float | None


class AdapterInfo(BaseModel):
    """`digest` names what it computes; `requests` are those under way."""

    name: str
    digest: str
    parameters: int
    requests: int
    card: AdapterCard


class AdapterList(BaseModel):
    adapters: list[AdapterInfo]


class Unloaded(BaseModel):
    """`requests` are those that still run with it: they finish."""

    name: str
    requests: int

"""`/v1/adapters`: which fine-tuned adapters requests may name, and loading more while serving."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from ..adapters import Entry
from ..protocol.adapters import AdapterCard, AdapterInfo, AdapterList, LoadRequest, Unloaded
from ..protocol.operation import ErrorResponse
from ..service import Service

router = APIRouter(tags=["adapters"])
STATUSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 409, 413, 422, 503)
}


@router.get("/v1/adapters", responses=STATUSES)
async def adapters(request: Request) -> AdapterList:
    """Those loaded, by name."""
    service = ready(request)
    entries = sorted(service.adapters.entries.items())
    return AdapterList(adapters=[shown(name, entry, service) for name, entry in entries])


@router.post("/v1/adapters", status_code=201, responses=STATUSES)
async def load(body: LoadRequest, request: Request) -> AdapterInfo:
    """Load one of the server's files, while other requests go on."""
    service = ready(request)
    return shown(body.name, await service.adapters.load(body.name, body.path), service)


@router.delete("/v1/adapters/{name}", responses=STATUSES)
async def unload(name: str, request: Request) -> Unloaded:
    """No new request may name it; those under way finish, and then its memory is free."""
    service = ready(request)
    adapter = service.adapters.unload(name)
    return Unloaded(name=name, requests=service.engine.num_with(adapter))


def ready(request: Request) -> Service:
    service: Service = request.app.state.service
    service.check_ready()
    return service


def shown(name: str, entry: Entry, service: Service) -> AdapterInfo:
    return AdapterInfo(
        name=name,
        digest=entry.adapter.adapted.digest,
        parameters=entry.num_parameters,
        requests=service.engine.num_with(entry.adapter),
        card=AdapterCard(**asdict(entry.card)),
    )

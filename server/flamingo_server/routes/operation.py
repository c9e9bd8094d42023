"""Health, readiness, metrics, version: what operators and probes ask."""

from __future__ import annotations

from importlib.metadata import version as installed

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .. import __version__
from ..protocol.operation import Health, Version
from ..service import Service

router = APIRouter(tags=["operation"])


@router.get("/healthz")
async def healthz() -> Health:
    """The process lives."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health}})
async def readyz(request: Request, response: Response) -> Health:
    """200 once the model is loaded and the engine steps; 503 while loading or draining."""
    status = request.app.state.service.status
    response.status_code = 200 if status == "ready" else 503
    return Health(status=status)


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    service: Service = request.app.state.service
    service.metrics.adapters.set(len(service.adapters.entries) if service.is_loaded else 0)
    return Response(service.metrics.render(service.stats()), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version(request: Request) -> Version:
    """Server, model and torch."""
    service: Service = request.app.state.service
    return Version(version=__version__, model=service.model_name, torch=installed("torch"))

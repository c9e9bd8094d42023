"""`POST /v1/render`: what the model would read. Runs no model and looks at no picture."""

from __future__ import annotations

from fastapi import APIRouter, Request

from flamingo_model.prompt import TextPart

from ..prompts import Layout
from ..protocol.prompt import PromptRequest, RenderedPart, RenderedToken, RenderResponse
from ..service import Service
from .generate import STATUSES

router = APIRouter(tags=["generate"])


@router.post("/v1/render", responses=STATUSES)
async def render(body: PromptRequest, request: Request) -> RenderResponse:
    """Parts, tokens, and which picture each token sees."""
    service: Service = request.app.state.service
    service.check_ready()
    service.check_model(body.model)
    service.adapters.find(body.adapter)
    layout = service.prompts.lay_out(body)
    rendered = await service.prompts.render(layout)
    pairs = zip(rendered.token_ids, rendered.media_index, strict=True)
    return RenderResponse(
        model=service.model_name,
        parts=shown(layout),
        token_ids=rendered.token_ids,
        tokens=[
            RenderedToken(token_id=id, token=service.spelling(id), media=None if at < 0 else at)
            for id, at in pairs
        ],
    )


def shown(layout: Layout) -> list[RenderedPart]:
    """As in a request, but for the bytes of the pictures."""
    media = iter(layout.media)
    parts = []
    for part, place in zip(layout.parts, layout.places, strict=True):
        if isinstance(part, TextPart):
            special = part.special_tokens
            text = RenderedPart(type="text", place=place, text=part.text, special_tokens=special)
            parts.append(text)
        else:
            found, where = next(media)
            parts.append(RenderedPart(type=found.type, place=where))
    return parts

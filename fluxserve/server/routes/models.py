"""GET /v1/models and /v1/models/{id}: the served models. POST {id}/load and {id}/unload: which are loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from fluxserve.completion import default_size
from fluxserve.engine import Engine
from fluxserve.engine.engine import State
from fluxserve.request import MAX_IMAGES, ModelCard
from fluxserve.server.contract.model_names import listed_names, model_aliases, model_id
from fluxserve.server.contract.openapi import errors
from fluxserve.server.contract.schemas import (
    ModelBody,
    ModelDefaults,
    ModelLimits,
    ModelList,
    ModelPlacement,
    ModelState,
)
from fluxserve.server.http.paths import MODELS
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=MODELS, tags=["models"])

_STATES: dict[State, ModelState] = {
    "unloaded": "unloaded",
    "starting": "loading",
    "restarting": "loading",
    "ready": "loaded",
    "draining": "loaded",
    "failed": "failed",
}


@router.get("", responses=errors(503))
async def list_models(services: ServicesOf) -> ModelList:
    """Every model, once under its id and once under each name that the operator gives it."""
    services.models.check_known()
    names = listed_names(services.models.engines)
    return ModelList(data=[_describe(services, model, name) for name, model in names.items()])


@router.post("/{name:path}/load", responses=errors(404, 503))
async def load_model(name: str, services: ServicesOf) -> ModelBody:
    """Has a configured model loaded, as soon as there is room for it; answers at once."""
    model = services.model(name)
    services.models.ask_for(model)
    return _describe(services, model, model_id(model))


@router.post("/{name:path}/unload", responses=errors(404, 503))
async def unload_model(name: str, services: ServicesOf) -> ModelBody:
    """Has a model unloaded, once its workers have finished what they are at; answers at once."""
    model = services.model(name)
    services.models.dismiss(model)
    return _describe(services, model, model_id(model))


@router.get("/{name:path}", responses=errors(404, 503))
async def retrieve_model(name: str, services: ServicesOf) -> ModelBody:
    """A served model, by its id or an alias."""
    model = services.model(name)
    services.models.check_known()
    return _describe(services, model, name if name in model.config.hosting.served_model_names else model_id(model))


def _describe(services: Services, model: Engine, name: str) -> ModelBody:
    details = _details(services, model.card) if model.card else {}
    return ModelBody(
        id=name,
        created=services.started,
        owned_by="fluxserve",
        aliases=list(model_aliases(model, services.models.engines, services.config)),
        capabilities=[*model.card.capabilities, "stream"] if model.card else [],
        state=_state(model),
        workers=model.ready_workers,
        load_s=model.load_s,
        idle_timeout_s=model.config.idle_timeout_s,
        **details,
    )


def _state(model: Engine) -> ModelState:
    """Loading, too, while it waits for room."""
    state = _STATES[model.state]
    return "loading" if state == "unloaded" and model.waiting_since is not None else state


def _details(services: Services, card: ModelCard) -> dict[str, Any]:
    config = services.config
    size = "x".join(map(str, default_size(card, max_pixels=config.max_pixels)))
    return {
        "native_area": card.native_area,
        "default_size": size,
        "limits": ModelLimits(
            max_n=MAX_IMAGES,
            max_pixels=min(config.max_pixels, card.max_pixels or config.max_pixels),
            max_batch=card.max_batch,
            max_work=services.limits.max_work,
            max_input_pixels=config.max_input_pixels,
            max_input_images=card.max_input_images,
            max_sequence_length=card.max_sequence_length,
        ),
        "defaults": ModelDefaults(
            size=size,
            steps=card.steps,
            guidance_scale=card.guidance_scale,
            true_cfg_scale=card.true_cfg_scale,
            solver=card.solver,
            response_format=config.default_response_format,
        ),
        "loras": list(card.loras),
        "licence": card.licence,
        "description": card.description,
        "notice": card.notice,
        "placement": _placement(card),
    }


def _placement(card: ModelCard) -> ModelPlacement | None:
    if card.placement is None:
        return None
    return ModelPlacement(device=card.device, dtype=card.dtype, **asdict(card.placement))

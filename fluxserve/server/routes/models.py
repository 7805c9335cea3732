"""GET /v1/models and /v1/models/{id}: the served model, under its name and its aliases."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from fluxserve.completion import default_size
from fluxserve.request import MAX_IMAGES, ModelCard
from fluxserve.server.contract.model_names import check_model_name, model_aliases
from fluxserve.server.contract.openapi import errors
from fluxserve.server.contract.schemas import ModelBody, ModelDefaults, ModelLimits, ModelList, ModelPlacement
from fluxserve.server.http.paths import MODELS
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=MODELS, tags=["models"])

_CAPABILITIES = ["generations", "edits", "variations", "stream"]


@router.get("", responses=errors(503))
async def list_models(services: ServicesOf) -> ModelList:
    """The served model, once under its id and once under each name that the operator gives it."""
    names = dict.fromkeys((services.card.id, *services.config.served_model_names))
    return ModelList(data=[_describe(services, name) for name in names])


@router.get("/{name:path}", responses=errors(404, 503))
async def retrieve_model(name: str, services: ServicesOf) -> ModelBody:
    """The served model, by its id or an alias."""
    check_model_name(name, services.card, services.config)
    return _describe(services, name if name in services.config.served_model_names else services.card.id)


def _describe(services: Services, name: str) -> ModelBody:
    card, config = services.card, services.config
    size = "x".join(map(str, default_size(card, max_pixels=config.max_pixels)))
    return ModelBody(
        id=name,
        created=services.started,
        owned_by="fluxserve",
        aliases=list(model_aliases(card, config)),
        native_area=card.native_area,
        default_size=size,
        limits=ModelLimits(
            max_n=MAX_IMAGES,
            max_pixels=min(config.max_pixels, card.max_pixels or config.max_pixels),
            max_batch=card.max_batch,
            max_work=services.limits.max_work,
            max_input_pixels=config.max_input_pixels,
            max_input_images=card.max_input_images,
            max_sequence_length=card.max_sequence_length,
        ),
        defaults=ModelDefaults(
            size=size,
            steps=card.steps,
            guidance_scale=card.guidance_scale,
            true_cfg_scale=card.true_cfg_scale,
            solver=card.solver,
            response_format=config.default_response_format,
        ),
        loras=list(card.loras),
        capabilities=_CAPABILITIES,
        licence=card.licence,
        description=card.description,
        notice=card.notice,
        placement=_placement(card),
    )


def _placement(card: ModelCard) -> ModelPlacement | None:
    if card.placement is None:
        return None
    return ModelPlacement(device=card.device, dtype=card.dtype, **asdict(card.placement))

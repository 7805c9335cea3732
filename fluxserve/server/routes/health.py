"""GET /livez, /readyz, /health: whether the process lives, and whether it can draw."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from fluxserve.server.contract.openapi import Responses
from fluxserve.server.contract.schemas import ErrorBody, Health
from fluxserve.server.http.paths import HEALTH, LIVEZ, READYZ
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(tags=["health"])


_REFUSED: Responses = {403: {"model": ErrorBody}}
_NOT_READY: Responses = {**_REFUSED, 503: {"model": Health}}


@router.get(LIVEZ, response_model_exclude_none=True, responses=_REFUSED)
async def livez() -> Health:
    """200 as long as the process answers, whatever the model does."""
    return Health(status="ok")


@router.get(HEALTH, response_model=Health, responses=_NOT_READY)
@router.get(READYZ, response_model=Health, responses=_NOT_READY)
async def readyz(services: ServicesOf) -> JSONResponse:
    """200 once a request would be served; else 503, what is missing, and how far loading is."""
    missing = await _missing(services)
    health = Health(status=missing or "ok")
    loading = services.models.default.loading
    if missing and loading is not None:
        health = Health(status=health.status, stage=loading.stage, done=loading.done, total=loading.total)
    return JSONResponse(health.model_dump(exclude_none=True), 503 if missing else 200)


async def _missing(services: Services) -> str | None:
    if services.models.state != "ready":
        return services.models.state
    if not services.models.fresh:
        return "worker silent"
    return None if await services.store.probe() else "store"

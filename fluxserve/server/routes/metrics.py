"""GET /metrics: the figures, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from fluxserve.server.contract.openapi import errors
from fluxserve.server.http.paths import METRICS
from fluxserve.server.services import ServicesOf

router = APIRouter(tags=["health"])


@router.get(METRICS, response_class=PlainTextResponse, responses=errors())
async def metrics(services: ServicesOf) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    figures = services.models.metrics
    figures.store_bytes.set(services.store.size_bytes)
    figures.store_up.set(services.store.writable)
    return Response(figures.text(), media_type=figures.content_type)

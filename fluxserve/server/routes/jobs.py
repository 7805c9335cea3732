"""GET and DELETE /v1/jobs/{id}, GET /v1/jobs/{id}/events: requests that are answered later, for who sent them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from fluxserve.server.contract.openapi import EVENTS, errors
from fluxserve.server.contract.schemas import JobBody
from fluxserve.server.http.context import context_of
from fluxserve.server.http.paths import JOBS
from fluxserve.server.jobs.async_jobs import AsyncJob
from fluxserve.server.serve_jobs import answer_job, cancel_job, stream_job
from fluxserve.server.services import Services, ServicesOf

router = APIRouter(prefix=JOBS, tags=["jobs"])


@router.get("/{id}", response_model=JobBody, responses=errors(404))
async def get_job(id: str, request: Request, services: ServicesOf) -> Response:
    """How far a job is, and at last its answer."""
    return await answer_job(await _job(id, request, services), request, services)


@router.get("/{id}/events", response_class=Response, responses={200: EVENTS, **errors(404)})
async def get_job_events(id: str, request: Request, services: ServicesOf) -> Response:
    """A job's events from the start, as a stream has them."""
    return await stream_job(await _job(id, request, services), services)


@router.delete("/{id}", response_model=JobBody, responses=errors(404))
async def delete_job(id: str, request: Request, services: ServicesOf) -> Response:
    """Cancels a job that has not ended."""
    return await cancel_job(await _job(id, request, services), services)


async def _job(id: str, request: Request, services: Services) -> AsyncJob:
    return await services.jobs.find(id, context_of(request.scope).client)

"""GET /openapi.json, and /docs: the same as one page that loads nothing from elsewhere; entrances lead there."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse

from fluxserve.server.contract.docs_page import render_docs
from fluxserve.server.contract.openapi import build_schema
from fluxserve.server.http.access.forwarded import base_url
from fluxserve.server.services import ServicesOf

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(build_schema(request.app))


@router.get("/")
@router.get("/v1")
async def entrance(request: Request, services: ServicesOf) -> RedirectResponse:
    return RedirectResponse(f"{base_url(request.scope, services.config)}/docs")


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    policy = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(render_docs(build_schema(request.app)), headers=policy)

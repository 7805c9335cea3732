"""The application: routes, layers around them, and what errors become."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from fluxserve.errors import FluxserveError, InvalidRequest
from fluxserve.server.doors import huggingface, responses, webui
from fluxserve.server.doors.mcp import McpDoor
from fluxserve.server.doors.webui_progress import Underway
from fluxserve.server.http.access.control import AccessControl
from fluxserve.server.http.access.origins import Cors
from fluxserve.server.http.context import context_of
from fluxserve.server.http.errors import error_response
from fluxserve.server.http.instrumentation import CLIENT_GONE, Instrumentation
from fluxserve.server.http.pacing import Pacing
from fluxserve.server.http.paths import IMAGE_REQUESTS, MODELS
from fluxserve.server.http.sending import Sending
from fluxserve.server.http.target import Target
from fluxserve.server.routes import docs, files, health, images, jobs, metrics, models, studio
from fluxserve.server.services import Services

_NO_ROUTE = (
    f"there is no such route; fluxserve only draws pictures: POST {IMAGE_REQUESTS}/generations, "
    f"{IMAGE_REQUESTS}/edits, {IMAGE_REQUESTS}/variations; GET {MODELS}; see /docs"
)


def create_app(services: Services) -> ASGIApp:
    """The whole front as one ASGI application. The services stay the caller's to close."""
    door = McpDoor(services)
    app = create_routes(services, door)
    app.add_exception_handler(FluxserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(Exception, _on_bug)
    guarded: ASGIApp = AccessControl(app, services.config, services.models.check_serving)
    guarded = Cors(guarded, services.config.cors_origins)
    door.app = Instrumentation(Sending(Target(Pacing(guarded))), services.models.metrics, services.config.keep_alive_s)
    return door.app


def create_routes(services: Services, door: McpDoor) -> FastAPI:
    """All routes that the configuration leaves open, unguarded."""
    app = FastAPI(
        title="fluxserve",
        summary="Text-to-image models behind OpenAI's image API.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    pages = (studio, docs) if services.config.studio else (docs,)
    for resource in (images, jobs, files, models, health, metrics, *pages):
        app.include_router(resource.router)
    app.state.underway = Underway()
    config = services.config
    for is_open, other in ((config.responses, responses), (config.hf, huggingface), (config.sdapi, webui)):
        if is_open:
            app.include_router(other.router)
    if config.mcp:
        app.router.routes.append(door.route)
    return app


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FluxserveError)
    return error_response(error, request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown routes and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = InvalidRequest(f"this route does not accept {request.method}", code="method_not_allowed")
    else:
        refusal = InvalidRequest(_NO_ROUTE, code="not_found")
    return error_response(refusal, request.scope, error.headers)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; its status is for the log."""
    return Response(status_code=CLIENT_GONE)


async def _on_bug(request: Request, error: Exception) -> Response:
    """The traceback goes to the log, by the server that runs the application."""
    request_id = context_of(request.scope).request_id
    return error_response(FluxserveError(f"an internal error; its request id is {request_id}"), request.scope)

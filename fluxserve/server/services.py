"""What the routes work with, put together once at start."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from fluxserve.config import EngineConfig, ServerConfig
from fluxserve.engine import Engine
from fluxserve.pool import ModelPool
from fluxserve.server.contract.body_parser import BodyParser
from fluxserve.server.contract.content_filter import ContentGate, load_content_filter
from fluxserve.server.contract.model_names import find_model
from fluxserve.server.contract.resolve import ServingLimits
from fluxserve.server.contract.uploads import UploadReader
from fluxserve.server.http.body import BodyReader
from fluxserve.server.jobs.async_jobs import AsyncJobs
from fluxserve.server.jobs.detached import DetachedJobs
from fluxserve.server.jobs.idempotency import IdempotencyStore
from fluxserve.server.jobs.image_store import ImageStore
from fluxserve.server.jobs.store_folder import StoreFolder
from fluxserve.server.limits.rate_limit import RateLimiter


@dataclass(frozen=True)
class Services:
    """Everything that outlives a request. models: those served. started: Unix time, s.

    content_filter: the operator's, if any.
    """

    models: ModelPool
    config: ServerConfig
    limits: EngineConfig
    store: ImageStore
    idempotency: IdempotencyStore
    jobs: AsyncJobs
    detached: DetachedJobs
    bodies: BodyReader
    parser: BodyParser
    uploads: UploadReader
    content_filter: ContentGate | None
    started: int

    def model(self, name: str | None) -> Engine:
        """The served model of this name. Raises: InvalidRequest: there is none."""
        return find_model(name, self.models.engines, self.config)

    def serving_limits(self, model: Engine) -> ServingLimits:
        """Raises: ModelLoading: the model's card is not known yet."""
        return ServingLimits(model.known_card(), self.config, self.limits)

    def close(self) -> None:
        """Lets go of threads, timers and the store's folder."""
        self.detached.close()
        self.parser.close()
        self.uploads.close()
        self.store.close()


def open_services(models: ModelPool, config: ServerConfig, limits: EngineConfig, folder: StoreFolder) -> Services:
    """folder: where pictures and stored answers lie.

    Raises:
        ConfigError: the content filter cannot be used.
    """
    answers = IdempotencyStore(folder, config.url_ttl_s)
    return Services(
        models=models,
        config=config,
        limits=limits,
        store=ImageStore(folder, config.url_ttl_s, config.store_quota_bytes),
        idempotency=answers,
        jobs=AsyncJobs(folder, answers, config.url_ttl_s),
        detached=DetachedJobs(),
        bodies=BodyReader(RateLimiter(config.rate_limit) if config.rate_limit else None, folder.scratch),
        parser=BodyParser(),
        uploads=UploadReader(),
        content_filter=ContentGate(load_content_filter(config.content_filter)) if config.content_filter else None,
        started=int(time.time()),
    )


async def _services(request: Request) -> Services:
    """A coroutine: FastAPI would run a plain function in a thread, for every request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(_services)]
"""A route's parameter of this type is the application's services."""

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
from fluxserve.server.jobs.homes import Answers, Home, Jobs, Pictures
from fluxserve.server.jobs.idempotency import IdempotencyStore
from fluxserve.server.jobs.image_store import ImageStore
from fluxserve.server.jobs.shared.home import open_shared_home
from fluxserve.server.jobs.store_folder import StoreFolder
from fluxserve.server.limits.rate_limit import RateLimiter


@dataclass(frozen=True)
class Services:
    """Everything that outlives a request. models: those served. started: Unix time, s.

    home: of pictures, answers and jobs. folder: this server's own. content_filter: the operator's, if any.
    """

    models: ModelPool
    config: ServerConfig
    limits: EngineConfig
    home: Home
    folder: StoreFolder
    detached: DetachedJobs
    bodies: BodyReader
    parser: BodyParser
    uploads: UploadReader
    content_filter: ContentGate | None
    started: int

    @property
    def store(self) -> Pictures:
        return self.home.pictures

    @property
    def idempotency(self) -> Answers:
        return self.home.answers

    @property
    def jobs(self) -> Jobs:
        return self.home.jobs

    def model(self, name: str | None) -> Engine:
        """The served model of this name. Raises: InvalidRequest: there is none."""
        return find_model(name, self.models.engines, self.config)

    def serving_limits(self, model: Engine) -> ServingLimits:
        """Raises: ModelLoading: the model's card is not known yet."""
        return ServingLimits(model.known_card(), self.config, self.limits)

    def close(self) -> None:
        """Lets go of threads, timers and the store."""
        self.detached.close()
        self.parser.close()
        self.uploads.close()
        self.home.close()
        self.folder.close()


async def open_services(models: ModelPool, config: ServerConfig, limits: EngineConfig, folder: StoreFolder) -> Services:
    """folder: this server's own: for uploads and, unless there is a shared store, pictures and stored answers.

    Raises:
        ConfigError: the content filter or the shared store cannot be used.
    """
    gate = ContentGate(load_content_filter(config.content_filter)) if config.content_filter else None
    return Services(
        models=models,
        config=config,
        limits=limits,
        home=await _open_home(config, folder),
        folder=folder,
        detached=DetachedJobs(),
        bodies=BodyReader(RateLimiter(config.rate_limit) if config.rate_limit else None, folder.scratch),
        parser=BodyParser(),
        uploads=UploadReader(),
        content_filter=gate,
        started=int(time.time()),
    )


async def _open_home(config: ServerConfig, folder: StoreFolder) -> Home:
    ttl_s, quota_bytes = config.url_ttl_s, config.store_quota_bytes
    if config.store is not None:
        return await open_shared_home(config.store, ttl_s, quota_bytes, config.store_redirect)
    answers = IdempotencyStore(folder, ttl_s)
    jobs = AsyncJobs(folder, answers, ttl_s)
    return Home(ImageStore(folder, ttl_s, quota_bytes), answers, jobs, close=lambda: None)


async def _services(request: Request) -> Services:
    """A coroutine: FastAPI would run a plain function in a thread, for every request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesOf = Annotated[Services, Depends(_services)]
"""A route's parameter of this type is the application's services."""

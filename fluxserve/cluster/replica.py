"""One replica of a model: engine, worker and application as `fluxserve serve` has them. Knows no Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Scope

from fluxserve.cli.front import open_folder
from fluxserve.cluster import asgi
from fluxserve.cluster.figures import Figures, figures_of
from fluxserve.cluster.settings import ClusterSettings, Deployed
from fluxserve.errors import WorkerUnavailable
from fluxserve.memory import give_memory_back
from fluxserve.pool import ModelPool
from fluxserve.request import ModelCard
from fluxserve.server.app import create_app
from fluxserve.server.contract.schemas import ModelBody
from fluxserve.server.jobs.load_times import StoredLoadTimes
from fluxserve.server.routes.models import list_models
from fluxserve.server.services import Services, open_services

log = logging.getLogger(__name__)


class Told(NamedTuple):
    """What a replica says of its model."""

    card: ModelCard
    listed: ModelBody


class Replica:
    """name: what figures and the log call it."""

    def __init__(self, name: str, deployed: Deployed, services: Services) -> None:
        self.name = name
        self._deployed = deployed
        self._services = services
        self._app: ASGIApp = create_app(services)

    @classmethod
    async def start(cls, name: str, deployed: Deployed, settings: ClusterSettings) -> Replica:
        """Returns once its worker takes jobs.

        Raises:
            WorkerUnavailable: that will never be. ConfigError: the server's folder cannot be used.
        """
        give_memory_back()
        share = max(1, deployed.scaling.cpus // len(deployed.model.pipelines))
        os.environ["OMP_NUM_THREADS"] = str(share)  # Ray sets it to 1, for its own process, which computes nothing
        folder = open_folder(settings.server)
        pool = ModelPool([deployed.model], settings.limits, StoredLoadTimes(folder))
        services = await open_services(pool, settings.server, settings.limits, folder)
        await pool.start()
        try:
            await pool.default.wait_ready()
        except BaseException:
            await pool.stop()
            services.close()
            raise
        log.info("replica %s draws with %d threads a worker", name, share)
        return cls(name, deployed, services)

    def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The application's answer to one request, message by message."""
        return asgi.call(self._app, scope, body)

    async def tell(self) -> Told:
        """What `/v1/models` lists here."""
        listed = await list_models(self._services)
        return Told(self._services.models.default.known_card(), listed.data[0])

    async def figures(self) -> Figures:
        """What `/metrics` shows here."""
        return figures_of(self._deployed.name, self.name, self._services.models.metrics.registry)

    def check(self) -> None:
        """Raises WorkerUnavailable: no worker comes back."""
        if fatal := self._services.models.default.fatal:
            raise WorkerUnavailable(fatal.message)

    async def stop(self) -> None:
        """Finishes what is open, within the drain timeout, and ends the worker."""
        await self._services.models.drain(self._services.limits.drain_timeout_s)
        await self._services.models.stop()
        self._services.close()

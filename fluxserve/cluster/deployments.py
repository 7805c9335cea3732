"""The one file that knows Ray: deployments and their options, and what Ray's errors mean."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Scope

from fluxserve import logs
from fluxserve.cluster.figures import Figures
from fluxserve.cluster.ingress import Ingress
from fluxserve.cluster.replica import Replica, Told
from fluxserve.cluster.served import ServedModel, ServedModels
from fluxserve.cluster.settings import ClusterSettings, Deployed
from fluxserve.errors import QueueFull, ReplicaLost

log = logging.getLogger(__name__)

T = TypeVar("T")

INGRESS = "ingress"
REPLICA_REQUESTS, INGRESS_REQUESTS = 64, 1024
"""At once. A replica takes more than its own queue holds, so that it refuses, and answers probes, by itself."""
QUEUED, RETRY_AFTER_S = 100, 2.0
"""How many may wait for a replica to have room, and what others are told."""
WANTED_REQUESTS = 2
"""Of one replica, before another is started: one that is drawn and one that waits."""
WAITING_S = 10.0
"""How long there must be more before another replica is started."""
ASK_S = 5.0
"""For the replicas to say how they are."""
_HEALTH = {"health_check_period_s": 5.0, "health_check_timeout_s": 10.0}


class ModelReplica:
    """What Ray makes a replica of."""

    async def __init__(self, deployed: Deployed, settings: ClusterSettings) -> None:  # type: ignore[misc]
        self._replica = await Replica.start(_configured_name(), deployed, settings)

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        async for message in self._replica.answer(scope, body):
            yield message

    async def tell(self) -> Told:
        return await self._replica.tell()

    async def figures(self) -> Figures:
        return await self._replica.figures()

    async def check_health(self) -> None:
        self._replica.check()

    async def __del__(self) -> None:
        if hasattr(self, "_replica"):
            await self._replica.stop()


class IngressReplica:
    """backends: the models' handles, in their order."""

    def __init__(self, settings: ClusterSettings, *handles: DeploymentHandle) -> None:
        models = tuple(
            ServedModel(deployed, settings, RayBackend(deployed.name, handle))
            for deployed, handle in zip(settings.models, handles, strict=True)
        )
        self._learning = [asyncio.ensure_future(model.learn()) for model in models]
        served = ServedModels(models, settings.server, int(time.time()))
        self._ingress = Ingress(_configured_name(), served, settings.server)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._ingress


class RayBackend:
    """The replicas behind a handle. name: the deployment's."""

    def __init__(self, name: str, handle: DeploymentHandle) -> None:
        self._name = name
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        response = self._streaming.answer.remote(scope, body)
        try:
            with self._errors():
                async for message in response:
                    yield message
        finally:
            response.cancel()

    async def first_told(self) -> Told:
        with self._errors():
            return await self._handle.tell.remote()

    async def tell(self) -> list[Told]:
        return await self._all("tell")

    async def figures(self) -> list[Figures]:
        return await self._all("figures")

    async def _all(self, method: str) -> list[Any]:
        """What each says that is up and does not die over it; nobody waits for one that is not."""
        try:
            async with asyncio.timeout(ASK_S):
                said = await self._handle.broadcast(method).results_async(return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return [each for each in said if not isinstance(each, BaseException)]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Ray's errors as fluxserve's."""
        try:
            yield
        except BackPressureError as error:
            raise QueueFull(
                f"{QUEUED} requests wait for a replica of {self._name}; try again", retry_after_s=RETRY_AFTER_S
            ) from error
        except RayTaskError:
            raise  # an exception there, which is a mistake in fluxserve
        except (RayError, RayServeException) as error:
            log.warning("a replica of %s is lost: %s", self._name, type(error).__name__)
            raise ReplicaLost(
                f"the replica of {self._name} that had the request is gone; try again", retry_after_s=1.0
            ) from error


def application(settings: ClusterSettings) -> Any:
    """The ingress, bound to the models."""
    own = replace(settings, server=replace(settings.server, rate_limit=None))  # the ingress has counted already
    models = [_deployment(deployed, settings).bind(deployed, own) for deployed in settings.models]
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=INGRESS_REQUESTS,
        graceful_shutdown_timeout_s=settings.longest_s,
        ray_actor_options={"num_cpus": 0},
        **_HEALTH,
    )(serve.ingress()(IngressReplica))
    return ingress.bind(settings, *models)


def _deployment(deployed: Deployed, settings: ClusterSettings) -> Any:
    scaling = deployed.scaling
    return serve.deployment(
        name=deployed.name,
        max_ongoing_requests=REPLICA_REQUESTS,
        max_queued_requests=QUEUED,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=settings.longest_s,
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": WANTED_REQUESTS,
            "upscale_delay_s": WAITING_S,
            "downscale_delay_s": deployed.spare_s,
        },
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": deployed.gpus},
        **_HEALTH,
    )(ModelReplica)


def _configured_name() -> str:
    """This replica's name, under which it also logs."""
    name: str = serve.get_replica_context().replica_tag
    logs.configure(name)
    return name

"""The models of an application as the ingress knows them: their names, and what their replicas last said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

from fluxserve.cluster.backend import Backend
from fluxserve.cluster.replica import Told
from fluxserve.cluster.settings import ClusterSettings, Deployed
from fluxserve.config import ServerConfig
from fluxserve.engine import Engine
from fluxserve.errors import InvalidRequest, ModelLoading, Refused
from fluxserve.server.contract.model_names import find_model, listed_names, model_aliases
from fluxserve.server.contract.schemas import ModelBody, ModelList

log = logging.getLogger(__name__)

ASK_AGAIN_S = 5.0


class ServedModel:
    """engine: knows the model's names and draws nothing."""

    def __init__(self, deployed: Deployed, settings: ClusterSettings, backend: Backend) -> None:
        self.name = deployed.name
        self.backend = backend
        self.engine = Engine(deployed.model, settings.limits)
        self._told: ModelBody | None = None

    async def learn(self) -> None:
        """Waits for a first replica to say what the model is called."""
        while self._told is None:
            try:
                self._remember(await self.backend.first_told())
            except Refused as error:
                log.warning("%s cannot be asked yet: %s", self.name, error.message)
                await asyncio.sleep(ASK_AGAIN_S)

    async def listed(self) -> dict[str, Any]:
        """What `/v1/models` says of it now; `workers` of all replicas."""
        told = await self.backend.tell()
        for each in told[:1]:
            self._remember(each)
        if self._told is None:
            return {"capabilities": [], "state": "loading", "workers": 0, "load_s": None, "idle_timeout_s": None}
        state = "loaded" if told else "unloaded"
        return {**self._told.model_dump(), "state": state, "workers": sum(each.listed.workers for each in told)}

    def _remember(self, told: Told) -> None:
        self.engine.card, self._told = told.card, told.listed


class ServedModels:
    """All of them; the first is the default."""

    def __init__(self, models: tuple[ServedModel, ...], config: ServerConfig, started: int) -> None:
        self._models = {model.engine: model for model in models}
        self._config = config
        self._started = started

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    @property
    def only(self) -> ServedModel | None:
        return self.default if len(self._models) == 1 else None

    @property
    def default(self) -> ServedModel:
        return next(iter(self._models.values()))

    def find(self, name: str | None) -> ServedModel:
        """Raises: InvalidRequest: there is none of this name. ModelLoading: it may be that of one not heard of yet."""
        try:
            return self._models[find_model(name, tuple(self._models), self._config)]
        except InvalidRequest:
            if all(engine.card for engine in self._models):
                raise
            raise ModelLoading("not all models have loaded yet; try again", retry_after_s=ASK_AGAIN_S) from None

    async def listing(self) -> ModelList:
        """Every model under its id and the operator's names."""
        engines = tuple(self._models)
        said = dict(zip(engines, await asyncio.gather(*(model.listed() for model in self)), strict=True))
        entries = []
        for name, engine in listed_names(engines).items():
            own = {"id": name, "created": self._started, "owned_by": "fluxserve"}
            aliases = list(model_aliases(engine, engines, self._config))
            entries.append(ModelBody(**{**said[engine], **own, "aliases": aliases}))
        return ModelList(data=entries)

"""What `args` of a serve config says: the keys of fluxserve.toml, and how many replicas of each model there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fluxserve.cli.settings import TABLES, read_tables
from fluxserve.config import EngineConfig, ModelConfig, ServerConfig
from fluxserve.errors import ConfigError
from fluxserve.server.http.access.control import check_access

S = TypeVar("S", bound=BaseModel)

PLACE = "args"
SPARE_S = 600.0
"""How long a replica is kept that is not needed, unless idle_timeout says."""
EVERYWHERE = "0.0.0.0"
"""Where Ray's proxies listen, unless their http_options say otherwise, which nobody here is told."""
_RAYS = {"host": "host", "port": "port", "keep_alive": "keep_alive_timeout_s", "max_connections": None}
"""Options of ours that Ray has in our place, and what it calls them."""


class Scaling(BaseModel):
    """How many replicas of a model there may be, each with `cpus` CPUs, and a GPU where its device is cuda."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: int = Field(1, ge=1)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Scaling:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self


class _Ingress(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ingress_replicas: int = Field(1, ge=1)


@dataclass(frozen=True)
class Deployed:
    """One model. name: its deployment's, unique in the application."""

    name: str
    model: ModelConfig
    scaling: Scaling

    @property
    def gpus(self) -> int:
        return int(self.model.pipeline.device == "cuda")

    @property
    def spare_s(self) -> float:
        """How long a replica is kept that is not needed."""
        return self.model.hosting.idle_timeout_s or SPARE_S


@dataclass(frozen=True)
class ClusterSettings:
    """models: the first is the default. server: what holds for ingress and replicas."""

    models: tuple[Deployed, ...]
    server: ServerConfig
    limits: EngineConfig
    ingress_replicas: int

    @property
    def longest_s(self) -> float:
        """How long a replica may need to finish what it has."""
        return self.limits.max_job_seconds + self.limits.drain_timeout_s


def read_cluster(args: Mapping[str, Any]) -> ClusterSettings:
    """Variables (FLUXSERVE_*) of the process that calls count too, as for `fluxserve serve`.

    Raises:
        ConfigError: a key or a value that is not allowed, or an application that everybody could use.
    """
    content = {str(name).replace("-", "_"): value for name, value in args.items()}
    for name in _RAYS.keys() & content.keys():
        its = f"http_options.{_RAYS[name]}" if _RAYS[name] else "max_queued_requests"
        raise ConfigError(f"{PLACE}: {name} is not fluxserve's to decide here; see Ray's {its}")
    ingress = _parse(_Ingress, {name: content.pop(name) for name in _Ingress.model_fields.keys() & content.keys()})
    tables, scalings = _split(content.pop(TABLES, None) or [{"model": content.pop("model", "demo")}])
    configs = read_tables({**content, TABLES: tables}, PLACE)
    check_access(replace(configs.server, host=EVERYWHERE))
    if configs.server.store is None and sum(scaling.max_replicas for scaling in scalings) > 1:
        raise ConfigError(
            f"{PLACE}: several replicas have pictures and keys in common through a store alone; set store"
        )
    server = configs.server
    if server.api_keys:
        server = replace(server, host=EVERYWHERE)
    if server.store is not None:
        server = replace(server, output_dir=None)  # of a node's replicas each has scratch files in a folder of its own
    names = _names(configs.models)
    models = tuple(map(Deployed, names, map(_kept, configs.models), scalings))
    return ClusterSettings(models, server, configs.engine, ingress.ingress_replicas)


def _split(tables: Any) -> tuple[list[dict[str, Any]], list[Scaling]]:
    """The models' tables as fluxserve.toml has them, and what they say of replicas."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{PLACE}: {TABLES} must be a list of models, each with a key `model`")
    own = Scaling.model_fields.keys()
    named = [{str(name).replace("-", "_"): value for name, value in table.items()} for table in tables]
    plain = [{name: value for name, value in table.items() if name not in own} for table in named]
    said = [{name: value for name, value in table.items() if name in own} for table in named]
    return plain, [_parse(Scaling, each) for each in said]


def _parse(schema: type[S], values: dict[str, Any]) -> S:
    try:
        return schema(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "a model"
        raise ConfigError(f"{PLACE}: {name}: {first['msg'].removeprefix('Value error, ')}") from None


def _kept(model: ModelConfig) -> ModelConfig:
    """As a replica has it: loaded at its start, on what Ray gives it, and never idle: a replica ends with its model."""
    device = {"auto": "cpu"}.get(model.pipeline.device, model.pipeline.device)
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"{PLACE}: device must be cpu or cuda, got {device!r}: Ray gives each replica its own")
    pipeline = replace(model.pipeline, device=device)
    return replace(model, pipeline=pipeline, idle_timeout_s=None, preload=True)


def _names(models: tuple[ModelConfig, ...]) -> list[str]:
    """Of deployments: models' names, as far as a URL and a metric's label take them, and never twice the same."""
    names: list[str] = []
    for model in models:
        name = "".join(c if c.isalnum() or c in "-._" else "-" for c in model.label)
        names.append(f"{name}-{len(names) + 1}" if name in names else name)
    return names

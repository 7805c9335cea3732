"""The figures of several replicas as one: each sample with the names of its model and its replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector


class Figures(NamedTuple):
    """Of one replica, now."""

    model: str
    replica: str
    families: tuple[Metric, ...]


def figures_of(model: str, replica: str, registry: CollectorRegistry) -> Figures:
    return Figures(model, replica, tuple(registry.collect()))


def together(replicas: Iterable[Figures]) -> bytes:
    """Prometheus' text format: every family once, with the samples of all."""
    registry = CollectorRegistry()
    registry.register(_Together(replicas))
    return generate_latest(registry)


class _Together(Collector):
    def __init__(self, replicas: Iterable[Figures]) -> None:
        self._replicas = list(replicas)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for model, replica, own in self._replicas:
            names = {"model": model, "replica": replica}
            for each in own:
                family = families.setdefault(each.name, Metric(each.name, each.documentation, each.type))
                family.samples += [sample._replace(labels={**sample.labels, **names}) for sample in each.samples]
        yield from families.values()

"""The args of a serve config: read as fluxserve.toml is, with replicas, and refused by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxserve.cluster import build
from fluxserve.cluster.settings import read_cluster
from fluxserve.errors import ConfigError

OPEN = {"insecure": True, "store": "s3://pictures/flux"}
CONFIGS = sorted((Path(__file__).parents[2] / "docker" / "cluster").glob("serve*.yaml"))


def test_models_have_deployments_and_replicas() -> None:
    args = {
        **OPEN,
        "url-ttl": 60,
        "models": [
            {"model": "demo", "min_replicas": 0, "max-replicas": 4, "cpus": 2},
            {"model": "demo", "served_model_name": ["second"], "device": "cuda"},
        ],
    }
    settings = read_cluster(args)
    assert [each.name for each in settings.models] == ["demo", "demo-2"]
    first, second = settings.models
    assert (first.scaling.min_replicas, first.scaling.max_replicas, first.scaling.cpus) == (0, 4, 2)
    assert (first.gpus, second.gpus) == (0, 1)
    assert first.model.pipeline.device == "cpu", "Ray was told that it needs no GPU"
    assert all(each.model.idle_timeout_s is None and each.model.preload for each in settings.models)
    assert settings.server.url_ttl_s == 60
    assert settings.longest_s == settings.limits.max_job_seconds + settings.limits.drain_timeout_s


def test_one_model_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_API_KEY", "secret")
    monkeypatch.setenv("FLUXSERVE_MODEL", "klein")
    monkeypatch.setenv("FLUXSERVE_OUTPUT_DIR", "/pictures")
    assert str(read_cluster({"model": "demo"}).server.output_dir) == "/pictures"
    settings = read_cluster({"model": "demo", "store": "s3://pictures"})
    assert settings.server.output_dir is None, "replicas of one node would be in each other's way"
    assert settings.server.api_keys == ("secret",)
    assert settings.models[0].name == "demo", "args say which models there are"
    assert settings.ingress_replicas == 1


@pytest.mark.fault(127)
@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({}, "FLUXSERVE_API_KEY"),
        ({"port": 80, **OPEN}, "http_options.port"),
        ({"host": "127.0.0.1", **OPEN}, "http_options.host"),
        ({"max-connections": 5, **OPEN}, "max_connections"),
        ({"models": [{"model": "demo", "device": "cuda:1"}], **OPEN}, "device must be cpu or cuda"),
        ({"models": [{"model": "demo", "device": "cuda:0,cuda:1"}], **OPEN}, "device must be cpu or cuda"),
        ({"models": [{"model": "demo", "cpus": 0}], **OPEN}, "cpus"),
        ({"models": [{"model": "demo", "min_replicas": 2}], **OPEN}, "max_replicas must be at least min_replicas"),
        ({"models": [{"model": "demo", "max_replicas": "many"}], **OPEN}, "max_replicas"),
        ({"models": [{"model": "demo"}, {"model": "demo"}], **OPEN}, "demo is to be served twice"),
        ({"models": "demo", **OPEN}, "models must be a list"),
        ({"models": [{"device": "cpu"}], **OPEN}, "without a model"),
        ({"ingress_replicas": 0, **OPEN}, "ingress_replicas"),
        ({"models": [{"model": "demo", "max_replicas": 2}], "insecure": True}, "set store"),
        ({"modles": 1, **OPEN}, "modles"),
        ({"url_ttl": "soon", **OPEN}, "url_ttl in args"),
    ],
)
def test_what_is_wrong_is_named(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build(args)
    assert told in refusal.value.message


def test_two_nodes_of_one_compose_file() -> None:
    compose = yaml.safe_load((CONFIGS[0].parent / "compose.yaml").read_text())
    head, node = compose["services"]["head"], compose["services"]["node"]
    assert head["ports"] == ["127.0.0.1:8000:8000"], "Ray's own ports are for the nodes alone"
    assert "ports" not in node
    for service in (head, node):
        variables = service["environment"]
        assert variables["RAY_AUTH_MODE"] == "token"
        assert ":?" in variables["RAY_AUTH_TOKEN"]
        module, _, name = variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert "pictures:/pictures" in service["volumes"]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert ":?" in head["environment"]["FLUXSERVE_API_KEY"]
    config = yaml.safe_load(CONFIGS[0].read_text())
    assert config["applications"][0]["args"]["store"] == "file:///pictures"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_of_the_repository_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_API_KEY", "secret")
    config = yaml.safe_load(path.read_text())
    (application,) = config["applications"]
    assert application["import_path"] == "fluxserve.cluster:build"
    assert "request_timeout_s" not in config["http_options"], "at 0 every request fails; unset there is no bound"
    assert read_cluster(application["args"]).models

"""What the images and the compose file promise, read from the files; a daemon is not needed."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from fluxserve.cli.options import settings_of
from fluxserve.config import EngineConfig, PipelineConfig, ServerConfig
from fluxserve.errors import ConfigError
from fluxserve.server.http.access.control import check_access
from tests.docker.dockerfile import Dockerfile, read_dockerfile

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CPU, CUDA = DOCKER / "Dockerfile.cpu", DOCKER / "Dockerfile.cuda"
UID = "10001"


@pytest.fixture(scope="module", params=[CPU, CUDA], ids=["cpu", "cuda"])
def image(request: pytest.FixtureRequest) -> Dockerfile:
    return read_dockerfile(request.param)


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    content = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return dict(content["services"]["fluxserve"])


def sample_settings() -> dict[str, str]:
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


class TestImage:
    def test_base_is_a_build_argument(self, image: Dockerfile) -> None:
        """Every stage is built on the one that can be named, or on another stage."""
        names = {stage.name for stage in image.stages}
        foreign = [stage.base for stage in image.stages if stage.base not in names]
        assert foreign == ["${BASE_IMAGE}"]
        assert image.arguments["BASE_IMAGE"]

    def test_last_stage_installs_nothing_but_python_and_certificates(self, image: Dockerfile) -> None:
        commands = " && ".join(run for stage in image.lineage() for run in stage.all("RUN"))
        installed = re.findall(r"apt-get install ([^&]+)", commands)
        packages = {word for words in installed for word in words.split() if not word.startswith("--")}
        assert packages == {"ca-certificates", "python3"}
        assert not re.search(r"\b(pip|venv|gcc|curl|wget)\b", commands)

    def test_only_the_environment_comes_from_the_build_stage(self, image: Dockerfile) -> None:
        copies = [copy for stage in image.lineage() for copy in stage.all("COPY") if copy.startswith("--from=")]
        assert copies == ["--from=build /opt/fluxserve /opt/fluxserve"]

    def test_copied_files_exist_and_are_sent_to_the_builder(self, image: Dockerfile) -> None:
        sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        copies = [copy.split()[:-1] for stage in image.stages for copy in stage.all("COPY")]
        sources = {source for words in copies if not words[0].startswith("--from=") for source in words}
        assert sources == sent
        assert all((ROOT / source).exists() for source in sources)

    def test_runs_as_another_user_than_root(self, image: Dockerfile) -> None:
        last = image.stages[-1]
        assert last.all("USER") == [f"{UID}:{UID}"]
        assert f"useradd --uid {UID}" in last.all("RUN")[0]
        assert [word for word, _ in last.instructions if word in ("RUN", "COPY", "USER")][-1] == "USER"

    def test_what_it_writes_lies_in_volumes_it_owns(self, image: Dockerfile) -> None:
        environment, last = image.environment(), image.stages[-1]
        written = [environment["HF_HOME"], environment["FLUXSERVE_OUTPUT_DIR"]]
        assert json.loads(last.all("VOLUME")[0]) == written
        assert f"install --directory --owner {UID} --group {UID} --mode 700 {' '.join(written)}" in last.all("RUN")[0]

    def test_health_is_readiness_with_time_to_fetch_weights(self, image: Dockerfile) -> None:
        options, _, command = image.stages[-1].all("HEALTHCHECK")[0].partition("CMD ")
        assert "--start-period=1h" in options.split()
        assert json.loads(command) == ["python", "/opt/fluxserve/healthcheck.py"]
        assert "docker/healthcheck.py /opt/fluxserve/" in image.stages[-1].all("COPY")

    def test_ends_on_sigterm(self, image: Dockerfile) -> None:
        assert image.stages[-1].all("STOPSIGNAL") == ["SIGTERM"]
        assert image.stages[-1].all("ENTRYPOINT") == ['["fluxserve"]']  # no shell between the signal and the server

    def test_without_a_key_it_refuses_in_two_lines(self, image: Dockerfile) -> None:
        host = image.environment()["FLUXSERVE_HOST"]
        with pytest.raises(ConfigError) as refusal:
            check_access(ServerConfig(host=host))
        assert len(refusal.value.message.splitlines()) == 2
        assert "FLUXSERVE_API_KEY" in refusal.value.message

    def test_sets_only_settings_there_are_and_no_key(self, image: Dockerfile) -> None:
        ours = {name for name in image.environment() if name.startswith("FLUXSERVE_")}
        assert ours <= {setting.variable for setting in settings_of(PipelineConfig, ServerConfig, EngineConfig)}
        assert "FLUXSERVE_API_KEY" not in ours

    def test_images_differ_in_torch_and_device_alone(self) -> None:
        cpu, cuda = (self._instructions(path) for path in (CPU, CUDA))
        delta = [line for line in difflib.ndiff(cpu, cuda) if line[0] in "+-"]
        torch, device = r"ARG TORCH_INDEX_URL=\S+/whl/(cpu|cu130)", r"ENV FLUXSERVE_DEVICE=cuda( NVIDIA_\w+=\S+)+"
        assert len(delta) == 3
        assert [line for line in delta if not re.fullmatch(rf"[+-] ({torch}|{device})", line)] == []

    @staticmethod
    def _instructions(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if not line.startswith("#")]


class TestHealthcheck:
    @pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
    def test_follows_readyz(self, status: int, code: int) -> None:
        with answering(status) as (port, paths):
            assert check_health(port) == code
        assert paths == ["/readyz"]

    def test_fails_when_nothing_listens(self) -> None:
        with answering(200) as (port, _):
            pass
        assert check_health(port) == 1


class TestCompose:
    def test_publishes_on_loopback_alone(self, service: dict[str, Any]) -> None:
        assert service["ports"] == ["127.0.0.1:1234:1234"]
        assert "network_mode" not in service

    def test_key_comes_from_env_file_and_is_demanded(self, service: dict[str, Any]) -> None:
        assert service["env_file"] == ".env"
        assert service["environment"]["FLUXSERVE_API_KEY"].startswith("${FLUXSERVE_API_KEY:?")
        assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()

    def test_container_has_no_more_rights_than_it_needs(self, service: dict[str, Any]) -> None:
        assert service["read_only"] is True
        assert service["tmpfs"] == "/tmp"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert 0 < service["pids_limit"] <= 4096
        assert not {"privileged", "cap_add", "user", "pid", "ipc"} & service.keys()

    def test_grace_is_longer_than_the_drain(self, service: dict[str, Any]) -> None:
        assert service["stop_grace_period"] == "45s"
        assert EngineConfig().drain_timeout_s < 45

    def test_named_volumes_lie_where_the_image_writes(self, service: dict[str, Any]) -> None:
        environment = read_dockerfile(CPU).environment()
        targets = [volume.split(":")[1] for volume in service["volumes"]]
        assert targets == [environment["HF_HOME"], environment["FLUXSERVE_OUTPUT_DIR"]]

    def test_builds_the_files_that_are_here(self, service: dict[str, Any]) -> None:
        overlay = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())["services"]["fluxserve"]
        built = [ROOT / part["build"]["dockerfile"] for part in (service, overlay)]
        assert built == [CPU, CUDA]
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT

    def test_sample_settings_exist_and_hold_no_secret(self) -> None:
        sample = sample_settings()
        ours = {name for name in sample if name.startswith("FLUXSERVE_")}
        assert ours <= {setting.variable for setting in settings_of(PipelineConfig, ServerConfig, EngineConfig)}
        assert sample["FLUXSERVE_API_KEY"] == sample["HF_TOKEN"] == ""


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server on a free port that answers every GET with `status`; yields the port and the paths it is asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, paths
        finally:
            server.shutdown()
            thread.join()


def check_health(port: int) -> int:
    environment = {**os.environ, "FLUXSERVE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, DOCKER / "healthcheck.py"], env=environment, timeout=60).returncode

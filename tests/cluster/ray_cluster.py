"""Real Ray Serve on this machine, in an environment of its own: nodes, an application, its processes."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.clients.environments import python_beside
from tests.server.running import GENERATIONS, ROOT, until

RAY = "ray[serve]==2.60.0"
CONFIG = ROOT / "docker" / "cluster" / "serve.yaml"
KEY = "cluster-test-key"
LOOPBACK = "127.0.0.1"
SMALL: dict[str, Any] = {"size": "64x64"}
LONG: dict[str, Any] = {"size": "256x256", "steps": 50, "response_format": "b64_json"}
"""Takes a second or more."""
STARTING_S = 180.0
_OBJECTS_BYTES = 100 * 2**20
_GRACE_S = 5.0


@dataclass
class RayCluster:
    """An application on nodes of this machine. nodes: the head first; each ends with its processes."""

    folder: Path
    bin: Path
    environment: Mapping[str, str]
    head: str
    port: int
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, headers={"authorization": f"Bearer {KEY}"})

    def add_node(self, cpus: int) -> None:
        where = ["--address", self.head] if self.nodes else ["--head", "--port", self.head.rpartition(":")[2]]
        ports = [f"--{name}-port={free_port()}" for name in ("dashboard-agent-grpc", "metrics-export")]
        if not self.nodes:
            ports += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        command = [str(self.bin / "ray"), "start", *where, *ports, "--block", f"--num-cpus={cpus}"]
        command += [f"--object-store-memory={_OBJECTS_BYTES}", f"--node-ip-address={LOOPBACK}", "--disable-usage-stats"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--temp-dir={self.folder}"] if not self.nodes else []
        with (self.folder / f"node-{len(self.nodes)}.log").open("wb") as log:
            node = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        self.nodes.append(node)

    def deploy(self, **args: Any) -> None:
        """The config of the repository with these args, returns once it runs. Again: a rolling update."""
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"] |= {"host": LOOPBACK, "port": self.port}
        config["proxy_location"] = "HeadOnly"
        config["applications"][0]["args"] |= {"store": f"file://{self.folder}/pictures", **args}
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [str(self.bin / "serve"), "run", str(file), "--non-blocking", "--address", self.head]
        with (self.folder / "serve.log").open("ab") as log:
            subprocess.run(
                command, env=self.environment, stdout=log, stderr=log, cwd=self.folder, check=True, timeout=STARTING_S
            )

    def replicas(self, deployment: str = "demo") -> list[int]:
        """Process ids of a deployment's replicas."""
        return [
            pid for pid, _, words in self._processes() if words.startswith(f"ray::ServeReplica:fluxserve:{deployment}")
        ]

    def workers(self) -> list[int]:
        """Process ids of the replicas' workers."""
        parents = set(self.replicas())
        return [pid for pid, parent, words in self._processes() if parent in parents and "fluxserve.worker" in words]

    def draw(self, seed: int, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """One picture, small unless the fields say else."""
        return self.http.post(GENERATIONS, json={"prompt": "a", "seed": seed, **SMALL, **fields}, headers=headers)

    def figure(self, name: str) -> float:
        """What /metrics says, of all replicas together."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"fluxserve_{name}{{"))

    def wait_replicas(self, count: int) -> None:
        """Until so many replicas have their workers, and a request is served."""
        until(lambda: self._ready_workers() == count, STARTING_S)

    def _ready_workers(self) -> int:
        with suppress(httpx.HTTPError, KeyError, IndexError):
            return int(self.http.get("/v1/models").json()["data"][0]["workers"])
        return -1

    def _processes(self) -> Iterator[tuple[int, int, str]]:
        """(pid, parent, command line) of all that this cluster's nodes have begun, told by the folder they run in."""
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if not (entry / "cwd").readlink().is_relative_to(self.folder):
                    continue
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1]), words

    def lose_node(self) -> None:
        """SIGKILL to everything of the node that was added last."""
        lost = self.nodes.pop()
        os.killpg(lost.pid, signal.SIGKILL)
        lost.wait()

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            with suppress(subprocess.TimeoutExpired):
                node.wait(_GRACE_S)
        for pid, _, _ in list(self._processes()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in self.nodes:
            node.wait()


@contextmanager
def cluster(folder: Path, nodes: int = 1, cpus: int = 4) -> Iterator[RayCluster]:
    """folder: a short path, since Ray's sockets lie below it."""
    bin = python_beside(RAY).parent
    environment = {
        **os.environ,
        "PATH": f"{bin}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLUXSERVE_API_KEY": KEY,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RAY_AUTH_MODE": "token",  # its nodes listen beyond the loopback, whatever they are told
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "fluxserve.cluster.proxy:layers",
    }
    built = RayCluster(folder, bin, environment, f"{LOOPBACK}:{free_port()}", free_port())
    try:
        for _ in range(nodes):
            built.add_node(cpus)
            time.sleep(5)
        yield built
    finally:
        built.http.close()
        built.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])

"""Workers of one model on one CPU hold its weights once: read from /proc, with the real model."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.engine.conftest import is_alive
from tests.pool.processes import WEIGHTS_IN_MEMORY, mapped, open_files, workers_of
from tests.server.conftest import StartServer
from tests.server.running import REAL_WORKER, Server, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

MIB = 2**20
FLAGS = ["demo", "--device", "cpu", "--dtype", "float32"]
"""The demo's files are float16: every weight is converted."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def up(server: Server) -> float:
    lines = server.get("/metrics").text.splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("fluxserve_worker_up ")), 0.0)


def draw(server: Server, seed: int, n: int = 1) -> list[str]:
    answer = server.generate(seed=seed, n=n, steps=1, response_format="b64_json", size="128x128")
    assert answer.status_code == 200, answer.text
    return [item["b64_json"] for item in answer.json()["data"]]


@pytest.mark.behaviour(113)
@pytest.mark.fault(132)
def test_a_second_worker_adds_next_to_no_weights(start_server: StartServer) -> None:
    alone = start_server(*FLAGS, worker=REAL_WORKER, variables=ONE_THREAD)
    pictures = draw(alone, 1, n=4)
    [single] = workers_of(alone)
    private_alone, weights = mapped(single).private, _weights(alone)
    alone.stop()
    server = start_server(*FLAGS, "--workers", "2", worker=REAL_WORKER, variables=ONE_THREAD)
    until(lambda: up(server) == 2, 60)
    assert draw(server, 1, n=4) == pictures
    first, second = workers_of(server)
    held = mapped(second, WEIGHTS_IN_MEMORY)
    assert held.shared >= 0.8 * weights
    assert held.private + mapped(second, ".safetensors").private <= 0.25 * weights
    assert mapped(second).private <= private_alone - 0.75 * held.shared
    _survives_kills(server, first, second, pictures)
    server.request("POST", "/v1/models/default/unload")
    until(lambda: not workers_of(server))
    until(lambda: not open_files(server.process.pid, WEIGHTS_IN_MEMORY))


def _survives_kills(server: Server, first: int, second: int, pictures: list[str]) -> None:
    """Of the one that made the weights, then of the other: the next finds them there."""
    size = _size_in_memory(second)
    for victim in (first, second):
        os.kill(victim, signal.SIGKILL)
        assert draw(server, 1, n=4) == pictures
        until(lambda: up(server) == 2, 60)
    assert [_size_in_memory(pid) for pid in workers_of(server)] == [size, size]
    assert all(mapped(pid, WEIGHTS_IN_MEMORY).private <= 0.25 * size for pid in workers_of(server))


@pytest.mark.fault(132)
def test_nothing_is_left_when_all_are_killed(start_server: StartServer) -> None:
    before = set(os.listdir("/dev/shm"))
    server = start_server(*FLAGS, "--workers", "2", worker=REAL_WORKER, variables=ONE_THREAD)
    until(lambda: up(server) == 2, 60)
    workers = workers_of(server)
    for pid in (server.process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    server.process.wait(10)
    until(lambda: not any(map(is_alive, workers)))
    assert set(os.listdir("/dev/shm")) <= before
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and _holds(pid, server.folder)]


def _holds(pid: str, folder: Path) -> bool:
    """Whether a process of this server's has the memory open."""
    try:
        ours = str(folder).encode() in Path(f"/proc/{pid}/environ").read_bytes()
        return ours and open_files(int(pid), WEIGHTS_IN_MEMORY) > 0
    except OSError:
        return False


def _weights(server: Server) -> int:
    """Bytes of the model's weights in float32: twice what its files hold."""
    return 2 * sum(path.stat().st_size for path in _files(workers_of(server)[0]))


def _files(pid: int) -> set[Path]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if line.endswith(".safetensors")}


def _size_in_memory(pid: int) -> int:
    links = (link for link in Path(f"/proc/{pid}/fd").iterdir() if WEIGHTS_IN_MEMORY in str(link.readlink()))
    return next(links).stat().st_size

"""From unload to picture: what a stream tells in advance, and what it takes; what is left of an unloaded model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.engine.conftest import is_alive
from tests.pool.processes import workers_of
from tests.server.conftest import StartServer
from tests.server.running import GENERATIONS, REAL_WORKER, Server, until

SLOW = {"FLUXSERVE_FAKE_LOAD": "slow:3"}
PROMPT = "a [slow:step:1.0]"
"""Of 4 steps: 4 s."""
MOST_OFF = 0.3
FRONT_BYTES = 150 * 2**20
GROWTH_BYTES = 8 * 2**20


def told_over_taken(server: Server, model: str) -> float:
    """The first time told in a stream, in the time that the whole stream took from then on."""
    body = {"model": model, "prompt": PROMPT, "steps": 4, "stream": True, "seed": 3}
    with server.http.stream("POST", GENERATIONS, json=body) as answer:
        lines = answer.iter_lines()
        told = next(line for line in lines if line.startswith(": waiting place=1"))
        began = time.monotonic()
        assert any(line == "event: image_generation.completed" for line in lines)
    return int(told.rpartition("eta_ms=")[2]) / 1000 / (time.monotonic() - began)


def unload(server: Server, model: str) -> None:
    server.request("POST", f"/v1/models/{model}/unload")
    until(lambda: server.get(f"/v1/models/{model}").json()["state"] == "unloaded")


@pytest.mark.behaviour(115, 166)
def test_the_time_to_a_picture_is_told_and_outlives_a_restart(start_server: StartServer, tmp_path: Path) -> None:
    flags = ["a", "b", "--output-dir", str(tmp_path / "kept")]
    server = start_server(*flags, variables=SLOW)
    assert server.generate(PROMPT, model="b", steps=4).status_code == 200
    unload(server, "b")
    assert told_over_taken(server, "b") == pytest.approx(1, abs=MOST_OFF)
    assert server.stop() == 0
    again = start_server(*flags, variables=SLOW)
    until(lambda: again.get("/v1/models/b").json()["native_area"] is not None)
    assert told_over_taken(again, "b") == pytest.approx(1, abs=MOST_OFF)


@pytest.mark.behaviour(115, 164)
@pytest.mark.fault(135)
def test_unloaded_again_and_again_nothing_is_left(start_server: StartServer) -> None:
    """Of a real model: no process, no file, no memory of the front's."""
    server = start_server("demo", worker=REAL_WORKER, variables={"OMP_NUM_THREADS": "1"})
    sizes, files = [], []
    for _ in range(3):
        assert server.generate(seed=1, steps=1, response_format="b64_json").status_code == 200
        [worker] = workers_of(server)
        unload(server, "default")
        until(lambda worker=worker: not is_alive(worker))  # type: ignore[misc]
        assert not workers_of(server)
        sizes.append(resident(server.process.pid))
        files.append(len(list(Path(f"/proc/{server.process.pid}/fd").iterdir())))
    assert max(sizes) < FRONT_BYTES
    assert sizes[-1] - sizes[0] < GROWTH_BYTES
    assert files[-1] == files[0]


def resident(pid: int) -> int:
    """Bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024

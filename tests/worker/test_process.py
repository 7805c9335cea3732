"""The worker process dies with the front and by nothing else, loads what it is told, and says why it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxserve import wire
from fluxserve.config import PipelineConfig
from tests.engine.conftest import is_alive
from tests.fake_pipeline import CARD, read_log
from tests.jobs import request
from tests.worker.conftest import Worker

Spawn = Callable[..., Worker]

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_it_loads_warms_up_and_tells(worker: Worker, tmp_path: Path) -> None:
    assert worker.of(wire.Ready) == [wire.Ready(CARD, 1)]
    assert [(message.done, message.total) for message in worker.of(wire.Loading)] == [(50, 100), (100, 100)]
    assert [message.stage for message in worker.of(wire.Measured)] == ["text", "denoise", "vae"]
    assert [act.verb for act in read_log(tmp_path)] == ["load", "begin", "step", "decode"]


def test_an_idle_worker_beats(worker: Worker) -> None:
    for _ in range(2):
        assert worker.wait_for(wire.Beat).stage == "idle"


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("fault", "exit_code", "reason"),
    [
        ("checkpoint", 65, "model.safetensors is damaged"),
        ("nan", 65, "the picture is not finite"),
        ("source", 69, "the repository is gated"),
        ("config", 78, "no such device"),
    ],
)
def test_a_refusal_is_told_and_is_the_exit_code(spawn: Spawn, fault: str, exit_code: int, reason: str) -> None:
    worker = spawn(FLUXSERVE_FAKE_LOAD=fault)
    worker.send(wire.Load(PipelineConfig(), 0.1))
    assert worker.wait_for(wire.Unusable) == wire.Unusable(exit_code, reason)
    assert worker.process.wait(10) == exit_code


def test_signals_for_the_front_do_not_reach_it(worker: Worker) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        worker.process.send_signal(number)
    worker.send(wire.Submit(1, request(), 0.0))
    assert worker.wait_for(wire.Done).job_id == 1


def test_it_ends_at_once_when_the_front_hangs_up(worker: Worker) -> None:
    worker.send(wire.Submit(1, request("a cat [hang:step1]"), 0.0))
    worker.wait_for(wire.Began)
    worker.stream.close()
    worker.pipe.close()
    assert worker.process.wait(5) == 0


def test_it_ends_when_its_front_is_not_its_parent(spawn: Spawn) -> None:
    worker = spawn(parent=1)
    assert worker.process.wait(10) == 0
    assert wire.read(worker.stream) is None


def test_it_ends_when_it_is_told_what_is_no_message(worker: Worker) -> None:
    worker.pipe.sendall(b"\xff" * 100)
    assert worker.process.wait(5) == 0


@pytest.mark.fault(38)
@linux
def test_the_kernel_takes_it_before_the_front(worker: Worker) -> None:
    assert Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text().strip() == "500"


FRONT = """
import asyncio
from fluxserve.config import EngineConfig, ModelConfig, PipelineConfig
from fluxserve.engine import Engine
from tests.jobs import request

async def main():
    engine = Engine(ModelConfig(PipelineConfig()), EngineConfig(), worker_module="tests.fake_worker")
    engine.load()
    await engine.wait_ready()
    job = engine.submit(request("a cat [hang:step1]"), client="me")
    while job.queued:
        await asyncio.sleep(0.01)
    print(*engine.worker_pids, flush=True)
    await job.result()

asyncio.run(main())
"""


@pytest.mark.fault(54)
def test_kill_9_of_the_front_takes_a_busy_worker_along() -> None:
    with subprocess.Popen([sys.executable, "-c", FRONT], stdout=subprocess.PIPE, text=True) as front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        assert is_alive(pid)
        front.kill()
        died = time.monotonic()
    while is_alive(pid):
        assert time.monotonic() - died < 1, "the worker outlived its front"
        time.sleep(0.01)


LOADED = """
import sys
import fluxserve.engine, fluxserve.wire, fluxserve.request, fluxserve.config, fluxserve.scheduling
heavy = {"torch", "transformers", "safetensors", "numpy", "PIL", "fluxserve.worker", "fluxserve.pipeline"}
print(sorted(heavy & set(sys.modules)))
"""


def test_the_front_half_loads_nothing_of_the_other() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_failed_job_is_told_and_the_next_is_done(worker: Worker) -> None:
    worker.send(wire.Submit(1, request("a cat [error:step2]"), 0.0))
    failed = worker.wait_for(wire.Failed)
    assert (failed.job_id, failed.code, failed.param) == (1, "internal_error", None)
    worker.send(wire.Submit(2, request(seed=5), 0.0))
    assert worker.wait_for(wire.Done).job_id == 2

"""An engine with the fake pipeline in a real worker process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fluxserve.config import EngineConfig, PipelineConfig
from fluxserve.engine import Engine

Start = Callable[..., Awaitable[Engine]]

FAKE_WORKER = "tests.fake_worker"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake pipelines log what they do."""
    monkeypatch.setenv("FLUXSERVE_FAKE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
async def start(folder: Path, anyio_backend: str) -> AsyncIterator[Start]:
    """Starts an engine with the given limits, ready unless `ready=False`; afterwards no worker may be left."""
    engines = []

    async def start_engine(*, ready: bool = True, **limits: float) -> Engine:
        engine = Engine(PipelineConfig(), EngineConfig(**limits), worker_module=FAKE_WORKER)  # type: ignore[arg-type]
        engines.append(engine)
        await engine.start()
        if ready:
            await engine.wait_ready()
        return engine

    yield start_engine
    for engine in engines:
        pid = engine.worker_pid
        await engine.stop()
        assert engine.worker_pid is None
        assert pid is None or not is_alive(pid)


@pytest.fixture
async def engine(start: Start) -> Engine:
    return await start()


def is_alive(pid: int) -> bool:
    """Whether the process runs, zombies not counted."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"

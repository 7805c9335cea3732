"""An engine with the fake pipeline in a real worker process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fluxserve.config import EngineConfig, HostingConfig, ModelConfig, PipelineConfig
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

    async def start_engine(*, ready: bool = True, workers: int = 1, **limits: float) -> Engine:
        config = ModelConfig(PipelineConfig(), HostingConfig(workers=workers))
        engine = Engine(config, EngineConfig(**limits), worker_module=FAKE_WORKER)  # type: ignore[arg-type]
        engines.append(engine)
        engine.load()
        if ready:
            await engine.wait_ready()
        return engine

    yield start_engine
    for engine in engines:
        pids = engine.worker_pids
        await engine.stop()
        assert not engine.worker_pids
        assert not any(map(is_alive, pids))


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

"""A worker process with the fake pipeline, spoken to over its pipe."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from fluxserve import wire
from fluxserve.config import PipelineConfig

M = TypeVar("M", bound=wire.ToFront)


class Worker:
    """The front's end of the pipe, blocking. read: messages of one type are waited for, others remembered."""

    def __init__(self, parent: int, **environment: str) -> None:
        self.pipe, theirs = socket.socketpair()
        self.pipe.settimeout(20)
        self.stream = self.pipe.makefile("rb")
        with theirs:
            command = (sys.executable, "-P", "-m", "tests.fake_worker", "--fd", str(theirs.fileno()))
            self.process = subprocess.Popen(
                [*command, "--parent", str(parent)], pass_fds=(theirs.fileno(),), env={**os.environ, **environment}
            )
        self.heard: list[wire.Message] = []

    def send(self, message: wire.ToWorker) -> None:
        for part in wire.frame(message):
            self.pipe.sendall(part)

    def load(self) -> wire.Ready:
        self.send(wire.Load(PipelineConfig(), 0.1))
        return self.wait_for(wire.Ready)

    def wait_for(self, kind: type[M], job_id: int | None = None) -> M:
        """The next message of this kind (of this job)."""
        while (message := wire.read(self.stream)) is not None:
            self.heard.append(message)
            if isinstance(message, kind) and job_id in (None, getattr(message, "job_id", None)):
                return message
        raise AssertionError(f"the worker ended without {kind.__name__}")

    def of(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]

    def close(self) -> None:
        self.stream.close()
        self.pipe.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def spawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Worker]]:
    """Starts a worker with these variables; its fake pipeline logs to tmp_path."""
    monkeypatch.setenv("FLUXSERVE_FAKE_DIR", str(tmp_path))
    workers = []

    def start(parent: int | None = None, **environment: str) -> Worker:
        workers.append(Worker(os.getpid() if parent is None else parent, **environment))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(spawn: Callable[..., Worker]) -> Worker:
    """One that has loaded."""
    worker = spawn()
    worker.load()
    return worker

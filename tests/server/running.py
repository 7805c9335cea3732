"""`fluxserve serve` as a process of its own, with the worker a test wants, and what tests ask of it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from fluxserve.server.jobs.store_folder import FOLDER
from tests.fake_pipeline import Pixels, count, read_log

FAKE_WORKER, ECHO_WORKER, REAL_WORKER = "tests.fake_worker", "tests.server.echo_worker", "fluxserve.worker"
ROOT = Path(__file__).parents[2]
_LISTENING = re.compile(r" on (http://\S+)/v1, loading")
GENERATIONS, EDITS, VARIATIONS = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"


@dataclass
class Server:
    """A running server. folder: where its fake pipelines log; log: the file with what it says."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    log: Path

    @property
    def store(self) -> Path:
        """Where it keeps pictures and answers."""
        return self.folder / "pictures" / FOLDER

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, verify=False)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(method, path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def generate(
        self, prompt: str = "a cat", *, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        """POST /v1/images/generations with these fields."""
        return self.request("POST", GENERATIONS, json={"prompt": prompt, **fields}, headers=headers)

    def send_form(
        self,
        path: str,
        fields: Mapping[str, str],
        files: list[tuple[str, bytes]],
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POSTs a form; files go as the official clients send them."""
        parts = [(name, ("upload", data, "application/octet-stream")) for name, data in files]
        return self.request("POST", path, data=dict(fields), files=parts, headers=headers)

    def count(self, verb: str, seed: int) -> int:
        """How often the fake pipeline did `verb` for this seed."""
        return count(self.folder, verb, seed)

    def wait_ready(self) -> Server:
        until(lambda: self.get("/readyz").status_code == 200, 60)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signals the server and returns its exit code."""
        self.http.close()
        self.process.send_signal(number)
        return self.process.wait(60)


def start(
    flags: list[str],
    tmp: Path,
    worker: str = FAKE_WORKER,
    variables: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
) -> Server:
    """Starts a server on a free port, `under` another command; returns once it listens."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLUXSERVE_FAKE_DIR": str(tmp), **(variables or {})}
    log = tmp / "server.log"
    serve = [sys.executable, "-m", "tests.server.serve", worker, "--port", "0", "--output-dir", str(tmp / "pictures")]
    with log.open("wb") as output:
        process = subprocess.Popen([*under, *serve, *flags], env=environment, stderr=output, cwd=tmp)
    until(lambda: _LISTENING.search(log.read_text()) is not None or process.poll() is not None, 60)
    listening = _LISTENING.search(log.read_text())
    assert listening is not None, log.read_text()
    return Server(process, listening[1], tmp, log)


def exchange(server: Server, parts: list[bytes]) -> bytes:
    """What the server answers to raw bytes, until it closes."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        with suppress(ConnectionResetError):  # what is sent to a closed socket comes back as a reset
            while data := connection.recv(65536):
                answer += data
        return answer


def kill_worker(server: Server) -> None:
    """SIGKILL to the newest worker."""
    os.kill([act.detail for act in read_log(server.folder) if act.verb == "load"][-1], signal.SIGKILL)


def worker_of(server: Server) -> int:
    """The process id of the server's worker."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == server.process.pid and b"fluxserve.worker" in command:
                return int(entry.name)
    raise AssertionError("no worker")


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Returns once it holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def assert_error(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The answer is this error, in OpenAI's shape; returns the error object."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert (body["error"]["code"], body["error"]["param"]) == (code, param), body
    assert body["error"]["message"]
    return dict(body["error"])


def picture(data: str | bytes) -> Pixels:
    """The pixels of a file, or of a b64_json."""
    raw = base64.b64decode(data, validate=True) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


def echo(item: Mapping[str, Any]) -> dict[str, Any]:
    """The request as it reached the echo worker, which writes it into the picture it draws."""
    image = Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))
    request: dict[str, Any] = json.loads(image.info["request"])
    return request


def png(width: int = 64, height: int = 64, color: tuple[int, ...] = (200, 30, 30), mode: str = "RGB") -> bytes:
    """A plain picture as PNG."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), color).save(buffer, "PNG")
    return buffer.getvalue()

"""Stores that servers of a test share: a folder, and moto's S3 server on a port of this machine."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import obstore
from obstore.store import LocalStore, from_url

from tests.clients.environments import python_with
from tests.server.running import until

BUCKET = "pictures"
KEY_ID, SECRET = "AKIAFLUXSERVETESTS", "of-nobodys-business"


@dataclass
class Storage:
    """url: for --store. variables: for its servers. folder: where the objects lie; None: behind `endpoint`."""

    url: str
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    endpoint: str = ""

    @cached_property
    def _objects(self) -> Any:
        """As somebody else with a key sees them."""
        if self.folder is not None:
            return LocalStore(self.folder)
        config: Any = {name.lower(): value for name, value in self.variables.items()}
        return from_url(self.url, config=config, client_options={"allow_http": True})

    def write(self, path: str, data: bytes | None) -> None:
        """Writes an object, or removes it."""
        if data is None:
            obstore.delete(self._objects, path)
        else:
            obstore.put(self._objects, path, data)

    def list(self, folder: str) -> set[str]:
        """The paths of what lies below a folder."""
        return {meta["path"] for meta in obstore.list(self._objects, prefix=folder).collect()}


def shared_folder(folder: Path) -> Storage:
    return Storage(f"file://{folder}", folder=folder)


@contextmanager
def s3_server(port: int | None = None) -> Iterator[tuple[Storage, subprocess.Popen[bytes]]]:
    """moto's server with an empty bucket, and its process."""
    port = port or _free_port()
    endpoint = f"http://127.0.0.1:{port}"
    python = python_with("moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5")
    command = [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(endpoint), 60)
        ask("PUT", f"{endpoint}/{BUCKET}").raise_for_status()
        variables = {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": endpoint,
        }
        yield Storage(f"s3://{BUCKET}/prefix", variables, endpoint=endpoint), process
    finally:
        process.kill()
        process.wait()


def ask(method: str, url: str, data: bytes | None = None) -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.request(method, url, content=data)


def _answers(endpoint: str) -> bool:
    try:
        return ask("GET", f"{endpoint}/moto-api/").status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])

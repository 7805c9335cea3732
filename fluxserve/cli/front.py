"""The front process: binds, builds the server from its parts, runs it, and ends it in order. The composition root.

Order: address, picture folder, worker, answers; so a mistake shows before a model is loaded.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NoReturn

import uvicorn

from fluxserve import __version__, logs
from fluxserve.config import EngineConfig, ModelConfig, ServerConfig
from fluxserve.errors import ConfigError, InUse
from fluxserve.memory import give_memory_back
from fluxserve.pool import ModelPool
from fluxserve.server.app import create_app
from fluxserve.server.http.access.control import check_access
from fluxserve.server.http.protocol import BAD_REQUEST, bounded
from fluxserve.server.jobs.load_times import StoredLoadTimes
from fluxserve.server.jobs.store_folder import FOLDER, StoreFolder
from fluxserve.server.limits.open_files import AcceptErrors, allow_open_files, most_connections
from fluxserve.server.services import open_services

log = logging.getLogger("fluxserve")

_BACKLOG = 1024
_ACCEPTED_A_TURN = 64
"""Connections the loop takes before it looks which have to give way to them."""
_THREADS = 32
"""For what waits, mostly for the disk: whoever has much written must not keep others from their answers."""
_LAST_ANSWERS_S = 0.5
"""After the drain timeout: for telling the requests that are still open that there is no more."""
_STOP_S = 1.0
"""For reaping the worker, which dies with this process in any case."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_front(
    models: Sequence[ModelConfig], limits: EngineConfig, config: ServerConfig, worker_module: str
) -> NoReturn:
    """Serves until a signal or a failure, then ends the process with the exit code that tells which.

    Raises:
        ConfigError, InUse: it cannot start so.
    """
    check_access(config)
    logs.configure("front")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    allow_open_files()
    give_memory_back()
    with bind(config.host, config.port) as listener:
        asyncio.run(_run(models, limits, config, worker_module, listener))
    raise AssertionError("the server ends the process")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InUse: another process has the address. ConfigError: there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InUse(f"port {port} on {host} is in use; choose another with --port") from error
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def open_folder(config: ServerConfig) -> StoreFolder:
    """Where pictures and answers are kept; by default a folder for each port, and for each server that has it.

    Raises:
        ConfigError, InUse: it cannot be used.
    """
    if config.output_dir is not None:
        return StoreFolder(config.output_dir / FOLDER)
    for number in count(1):
        with suppress(InUse):
            return StoreFolder(_cache_folder() / f"port-{config.port}{'' if number == 1 else f'-{number}'}")
    raise AssertionError("count() does not end")


async def _run(
    models: Sequence[ModelConfig],
    limits: EngineConfig,
    config: ServerConfig,
    worker_module: str,
    listener: socket.socket,
) -> NoReturn:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(AcceptErrors())
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="front"))
    folder = open_folder(config)
    pool = ModelPool(models, limits, StoredLoadTimes(folder), worker_module=worker_module)
    services = await open_services(pool, config, limits, folder)
    try:
        options = uvicorn.Config(
            create_app(services),
            lifespan="off",
            http=bounded(most_connections(config.max_connections), pool.metrics.rejected.labels(BAD_REQUEST.code).inc),
            backlog=_ACCEPTED_A_TURN,
            timeout_keep_alive=int(config.keep_alive_s),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        gc.freeze()  # what lives as long as the server need not be looked through while bodies are parsed
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        names = ", ".join(model.label for model in models)
        log.info("fluxserve %s on %s/v1, loading %s", __version__, address, names)
        if config.studio:
            log.info("draw at %s/", address)
        code = await Front(pool, _Server(options), limits.drain_timeout_s).run(listener)
    finally:
        services.close()
    logging.shutdown()
    os._exit(code)  # a thread that is in an operator's filter or in a decoder is not waited for


class _Server(uvicorn.Server):
    """Leaves the signals to the front: uvicorn would end jobs, and raise the signal again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """asyncio takes as many connections in one turn as it lets the kernel hold; the kernel may hold more."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)

    def abort(self) -> None:
        """Ends at once, whatever is being received, made or sent."""
        self.force_exit = self.should_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class Front:
    """Runs the models and the HTTP server together, from start to the last answer."""

    def __init__(self, models: ModelPool, server: _Server, drain_timeout_s: float) -> None:
        self._models = models
        self._server = server
        self._drain_timeout_s = drain_timeout_s
        self._exit_code = 0
        self._draining: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket) -> int:
        """Serves until it is told to stop or no worker can be kept; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # under nohup
            loop.add_signal_handler(number, self._on_signal, number)
        await self._models.start()
        watching = asyncio.create_task(self._watch())
        try:
            await self._server.serve(sockets=[listener])
        finally:
            watching.cancel()
            await asyncio.wait({asyncio.create_task(self._models.stop())}, timeout=_STOP_S)
        return self._exit_code

    def _on_signal(self, number: int) -> None:
        """The first signal ends the work in order, the second at once."""
        if self._draining is None:
            log.info(
                "finishing open requests for at most %g s; a second signal ends them at once", self._drain_timeout_s
            )
            self._draining = asyncio.create_task(self._drain())
        else:
            self._exit_code = 128 + number
            self._server.abort()

    async def _drain(self) -> None:
        """Jobs, and the answers that are still being sent, share the time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_timeout_s
        await self._models.drain(self._drain_timeout_s)
        await self._end_within(end - loop.time())

    async def _end_within(self, seconds: float) -> None:
        """Takes no more connections, and ends those that have not ended by then."""
        self._server.should_exit = True
        await asyncio.sleep(max(seconds, 0) + _LAST_ANSWERS_S)
        self._server.abort()

    async def _watch(self) -> None:
        """Ends the server with the worker's own exit code when no model can be served."""
        fatal = await self._models.wait_fatal()
        self._exit_code = fatal.exit_code
        await self._end_within(self._drain_timeout_s)


def _cache_folder() -> Path:
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise ConfigError("there is no home folder for pictures; name one with --output-dir") from error
    return Path(base) / "fluxserve" / "images"

"""Start and end: what refuses to start and with which code, what is answered on the way out, what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fluxserve.server.jobs.store_folder import FOLDER
from tests.engine.conftest import is_alive
from tests.fake_pipeline import read_log
from tests.faults import FAULTS
from tests.reliability.answers import assert_answer
from tests.server import running
from tests.server.conftest import StartServer
from tests.server.running import FAKE_WORKER, GENERATIONS, ROOT, Server, until


def worker_of(server: Server) -> int:
    """The process id of its newest worker."""
    return [act.detail for act in read_log(server.folder) if act.verb == "load"][-1]


def refused_start(*flags: str) -> tuple[int, str]:
    """The exit code and last words of a server that cannot start so."""
    command = [sys.executable, "-m", "fluxserve", "serve", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stderr


@pytest.mark.fault(52)
def test_sigterm_answers_what_was_accepted_and_refuses_what_comes_late(start_server: StartServer) -> None:
    server = start_server()
    worker = worker_of(server)
    host, port = server.url.removeprefix("http://").split(":")
    half = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n".encode()
    with ThreadPoolExecutor(3) as pool, socket.create_connection((host, int(port))) as straggler:
        straggler.sendall(half)
        accepted = [pool.submit(server.generate, "a [slow:step:0.3]", seed=seed) for seed in (1, 2, 3)]
        until(lambda: "fluxserve_requests_in_flight 3.0" in server.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/readyz").status_code == 503, 1)
        assert_answer(52, server.generate(), 503)
        for answer in accepted:
            assert_answer(52, answer.result(), 200)
        ended = time.monotonic()
        assert server.process.wait(20) in FAULTS[52].exit_codes
    assert time.monotonic() - ended < 5, "half a request holds up nobody"
    assert not is_alive(worker)


@pytest.mark.fault(53)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_the_end(start_server: StartServer, number: signal.Signals) -> None:
    server = start_server()
    worker = worker_of(server)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.generate, "a [slow:step:0.2]", seed=1, steps=200)
        until(lambda: server.count("step", 1) >= 1)
        server.process.send_signal(number)
        until(lambda: server.get("/readyz").status_code == 503)
        asked = time.monotonic()
        server.process.send_signal(number)
        code = server.process.wait(10)
    assert (code, code in FAULTS[53].exit_codes) == (128 + number, True)
    assert time.monotonic() - asked < 5
    assert not is_alive(worker)


@pytest.mark.fault(54)
def test_sigkill_leaves_no_worker_and_no_half_file(start_server: StartServer, tmp_path: Path) -> None:
    folder = ("--output-dir", str(tmp_path / "kept"))
    server = start_server(*folder)
    worker = worker_of(server)
    assert server.generate(seed=2).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.generate, "a [hang:step1]", seed=1).add_done_callback(lambda lost: lost.exception())
        until(lambda: server.count("begin", 1) == 1)
        server.process.kill()
        until(lambda: not is_alive(worker), 5)
    [whole] = (tmp_path / "kept" / FOLDER).glob("*.png")
    whole.rename(whole.with_name(f".tmp-{whole.name}"))
    start_server(*folder, ready=False)
    assert not list((tmp_path / "kept" / FOLDER).glob(".tmp*"))


@pytest.mark.fault(55)
def test_a_second_server_loads_nothing(server: Server) -> None:
    loads = len(read_log(server.folder))
    asked = time.monotonic()
    for flags in (
        ("--port", server.url.rpartition(":")[2]),
        ("--port", "0", "--output-dir", str(server.folder / "pictures")),
    ):
        code, words = refused_start(*flags)
        assert code in FAULTS[55].exit_codes
        assert "Traceback" not in words
    assert time.monotonic() - asked < 20
    assert len(read_log(server.folder)) == loads


@pytest.mark.fault(68)
@pytest.mark.parametrize("under", [[], ["nohup"]])
def test_a_terminal_that_closes(tmp_path: Path, under: list[str]) -> None:
    server = running.start([], tmp_path, under=under).wait_ready()
    try:
        server.process.send_signal(signal.SIGHUP)
        if under:
            assert server.generate().status_code == 200
            time.sleep(0.5)
            assert server.get("/readyz").status_code == 200
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    finally:
        server.http.close()
        server.process.kill()


@pytest.mark.fault(94)
def test_two_servers_of_one_user_need_no_options(tmp_path: Path) -> None:
    """The same port even, as in two containers that share a home."""
    servers = []
    for _ in range(2):
        command = [sys.executable, "-m", "tests.server.serve", FAKE_WORKER, "--port", "0"]
        home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        log = tmp_path / f"{len(servers)}.log"
        with log.open("wb") as output:
            servers.append((subprocess.Popen(command, env=home, stderr=output, cwd=tmp_path), log))
    try:
        until(lambda: all('"ready: ' in log.read_text() for _, log in servers), 60)
    finally:
        for process, _ in servers:
            process.terminate()
    assert [process.wait(20) for process, _ in servers] == [0, 0]
    images = tmp_path / "fluxserve" / "images"
    assert sorted(path.name for path in images.iterdir()) == ["port-0", "port-0-2"]


@pytest.mark.fault(60)
def test_foreign_files_in_the_servers_place_are_refused(tmp_path: Path) -> None:
    place = tmp_path / FOLDER
    place.mkdir()
    (place / "holiday.png").write_bytes(b"mine")
    code, words = refused_start("--port", "0", "--output-dir", str(tmp_path))
    assert code in FAULTS[60].exit_codes, words
    assert str(place) in words
    assert [path.name for path in place.iterdir()] == ["holiday.png"]


@pytest.mark.fault(42)
def test_a_folder_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the folder's place")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        code, words = refused_start("--port", "0", "--output-dir", str(folder))
        assert code in FAULTS[42].exit_codes, words
        assert "--output-dir" in words


@pytest.mark.fault(48, 49, 50, 51)
def test_weights_that_are_refused_end_the_server_with_their_name(start_server: StartServer) -> None:
    server = start_server(ready=False, variables={"FLUXSERVE_FAKE_LOAD": "checkpoint"})
    assert server.process.wait(20) in FAULTS[48].exit_codes
    assert "model.safetensors is damaged" in server.log.read_text()
    assert "ready" not in server.log.read_text()

"""The end is kept, whatever is open."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest

from scripts.endurance.servers import children
from tests.engine.conftest import is_alive
from tests.faults import FAULTS
from tests.reliability import unread
from tests.reliability.test_lifecycle import worker_of
from tests.server.conftest import StartServer
from tests.server.running import EDITS, Server, png, until

DRAIN_S, SLACK_S = 1.0, 5.0
"""A second of drain timeout and what a busy machine may add; without a bound it is over a minute."""


def ends(server: Server) -> None:
    """SIGTERM ends the server and its worker in time."""
    worker = worker_of(server)
    asked = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) in FAULTS[80].exit_codes
    assert time.monotonic() - asked < DRAIN_S + SLACK_S
    until(lambda: not is_alive(worker), 5)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.fault(80)
def test_unread_answers_hold_nothing_up(start_server: StartServer) -> None:
    server = start_server("--drain-timeout", str(DRAIN_S))
    fields = {**unread.LARGE, "response_format": "url"}
    path = "/images/" + server.generate(seed=1, **fields).json()["data"][0]["url"].rpartition("/")[2]
    with ExitStack() as stack:
        stack.enter_context(unread.ask(server, seed=2, n=2, **unread.LARGE))
        stack.enter_context(unread.ask(server, seed=4, n=2, stream=True, **unread.LARGE))
        for _ in range(3):
            stack.enter_context(unread.get(server, path))
        until(lambda: server.count("decode", 3) == server.count("decode", 5) == 1, 60)
        time.sleep(1)
        ends(server)


@pytest.mark.fault(80)
def test_a_job_and_a_filter_that_take_for_ever_hold_nothing_up(start_server: StartServer) -> None:
    server = start_server("--drain-timeout", str(DRAIN_S))
    with unread.ask(server, prompt="a [hang:step1]", seed=1):
        until(lambda: server.count("begin", 1) == 1)
        ends(server)
    filtered = start_server("--drain-timeout", str(DRAIN_S), "--content-filter", "tests.server.content_filters:slow")
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(unread.ask(filtered))
        time.sleep(0.5)
        ends(filtered)


@pytest.mark.fault(80, 121)
def test_stopped_decoders_hold_nothing_up(start_server: StartServer) -> None:
    server = start_server("--drain-timeout", str(DRAIN_S), "--api-key", "a", "--api-key", "b")
    with ThreadPoolExecutor(4) as pool:

        def edit(key: str) -> int:
            with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client, suppress(httpx.HTTPError):
                files, headers = {"image": png(600, 600)}, {"authorization": f"Bearer {key}"}
                answer = client.post(EDITS, data={"prompt": "a", "size": "64x64"}, files=files, headers=headers)
                return answer.status_code
            return 0

        assert edit("a") == 200
        decoders = children(server.process.pid) - {worker_of(server)}
        assert decoders
        for pid in decoders:
            os.kill(pid, signal.SIGSTOP)
        waiting = [pool.submit(edit, "a") for _ in range(3)]
        time.sleep(0.5)
        assert not any(each.done() for each in waiting), "one of a client at a time, and that is stopped"
        ends(server)
        assert not any(each.result() == 200 for each in waiting)
    until(lambda: not any(is_alive(pid) for pid in decoders), 5)

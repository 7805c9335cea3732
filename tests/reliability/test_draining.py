"""The end is kept, whatever is open."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

import pytest

from tests.engine.conftest import is_alive
from tests.faults import FAULTS
from tests.reliability import unread
from tests.reliability.test_lifecycle import worker_of
from tests.server.conftest import StartServer
from tests.server.running import Server, until

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

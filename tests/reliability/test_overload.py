"""More than the server can do: refused at once with an honest time, ended at the deadline, dropped when unwanted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress

import httpx
import pytest

from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import GENERATIONS, Server, until


def send_and_leave(server: Server, after_s: float, **fields: object) -> None:
    """A client that hangs up after `after_s` seconds."""
    with httpx.Client(base_url=server.url, timeout=after_s, trust_env=False) as client, suppress(httpx.ReadTimeout):
        client.post(GENERATIONS, json={"prompt": "a [slow:step:0.1]", **fields}, headers={"x-request-timeout": "9999"})


@pytest.mark.fault(26, 27)
def test_who_leaves_costs_at_most_a_step(server: Server) -> None:
    queued = range(2601, 2611)
    with ThreadPoolExecutor(11) as pool:
        running = pool.submit(send_and_leave, server, 1.5, seed=2700, steps=100)
        until(lambda: server.count("step", 2700) >= 1)
        wait([pool.submit(send_and_leave, server, 0.5, seed=seed, steps=150) for seed in queued])
        running.result()
    assert server.generate(seed=2701).status_code == 200
    steps = server.count("step", 2700)
    assert 1 <= steps <= 25
    assert server.generate(seed=2702).status_code == 200
    assert server.count("step", 2700) == steps
    assert sum(server.count("begin", seed) for seed in queued) == 0


@pytest.mark.fault(29, 30)
def test_timeouts_and_deadlines(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            server.generate, "a [slow:step:0.1]", seed=3000, steps=100, headers={"x-request-timeout": "2"}
        )
        until(lambda: server.count("step", 3000) >= 2)
        asked = time.monotonic()
        refused = server.generate(seed=2900, steps=200, headers={"x-request-timeout": "0.1"})
        assert time.monotonic() - asked < 1
        assert_answer(29, refused)
        assert_answer(30, running.result())
    assert server.generate(seed=3001).status_code == 200
    assert server.count("step", 3000) <= 30
    assert server.count("begin", 2900) == 0


@pytest.mark.fault(28)
def test_a_full_queue_tells_each_client_a_time_of_its_own(start_server: StartServer) -> None:
    server = start_server("--max-queue", "2")
    body = {"prompt": "a [slow:step:0.2]", "response_format": "b64_json"}

    def send(seed: int) -> httpx.Response:
        return httpx.post(server.url + GENERATIONS, json={**body, "seed": seed}, timeout=60, trust_env=False)

    assert send(1).status_code == 200
    with ThreadPoolExecutor(16) as pool:
        asked = time.monotonic()
        answers = list(pool.map(send, range(10, 26)))
    assert time.monotonic() - asked < 20
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) - len(refused) in (3, 4), "one or two in the worker, two that wait"
    for answer in refused:
        assert_answer(28, answer)
    waits = sorted(int(answer.headers["retry-after"]) for answer in refused)
    assert waits[-1] >= 4 * waits[0]


@pytest.mark.fault(32)
def test_one_idempotency_key_is_one_generation(server: Server) -> None:
    def send(seed: int) -> httpx.Response:
        return server.generate("a [slow:step:0.1]", seed=seed, headers={"idempotency-key": "fault-32"})

    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(send, [3200] * 3), send(3200)]
    for answer in answers:
        assert_answer(32, answer, 200)
    assert_answer(32, send(3201), 422)
    assert len({answer.content for answer in answers}) == 1
    assert (server.count("begin", 3200), server.count("begin", 3201)) == (1, 0)

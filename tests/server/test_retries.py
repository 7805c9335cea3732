"""Clients that time out, retry, leave or send twice: how often the model runs, and who gets which answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, Server, assert_error, picture, png, until

SLOW = "a cat [slow:step:0.25]"
"""One second at four steps."""


def send_and_leave(server: Server, after_s: float, **options: Any) -> None:
    """A client whose read timeout ends after `after_s` seconds."""
    with (
        httpx.Client(base_url=server.url, trust_env=False, timeout=after_s) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.post(GENERATIONS, **options)


def announced(retry: int, timeout_s: float) -> dict[str, str]:
    """The headers in which openai-python tells its timeout and which try this is."""
    return {"x-stainless-retry-count": str(retry), "x-stainless-read-timeout": str(timeout_s)}


@pytest.mark.behaviour(43)
def test_the_retry_of_a_client_that_timed_out_joins_its_job(server: Server) -> None:
    body = {"prompt": SLOW, "seed": 4300, "response_format": "b64_json"}
    send_and_leave(server, 0.5, json=body, headers=announced(0, 0.5))
    response = server.request("POST", GENERATIONS, json=body, headers=announced(1, 0.5))
    assert np.array_equal(picture(response.json()["data"][0]["b64_json"]), expected_pixels(4300, 64, 64))
    assert server.count("begin", 4300) == 1


@pytest.mark.behaviour(43)
def test_the_retry_of_a_form_joins_too(server: Server) -> None:
    """Each try has its own boundary, as httpx makes them."""
    fields, files = {"prompt": SLOW, "seed": "4310"}, {"image": png()}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post(EDITS, data=fields, files=files, headers=announced(0, 0.5))
    response = server.request("POST", EDITS, data=fields, files=files, headers=announced(1, 0.5))
    assert response.json()["data"][0]["seed"] == 4310
    assert server.count("begin", 4310) == 1


@pytest.mark.behaviour(44, 45)
@pytest.mark.parametrize(
    ("headers", "why"),
    [({}, "says nothing"), (announced(0, 60), "left early"), (announced(2, 0.5), "sends no further retry")],
)
def test_any_other_client_that_leaves_stops_its_job(server: Server, headers: dict[str, str], why: str) -> None:
    seed = 4400 + len(why)
    send_and_leave(server, 0.5, json={"prompt": SLOW, "seed": seed, "steps": 40}, headers=headers)
    assert server.generate(seed=seed + 1).status_code == 200, "the worker is free again"
    assert 1 <= server.count("step", seed) <= 4
    again = {"prompt": SLOW, "seed": seed, "steps": 40}
    send_and_leave(server, 0.3, json=again, headers=announced(1, 60))
    assert server.count("begin", seed) == 2, "nothing was kept"


@pytest.mark.behaviour(44, 45)
def test_an_orphan_that_nobody_adopts_is_stopped(server: Server) -> None:
    body = {"prompt": SLOW, "seed": 4450, "steps": 60}
    send_and_leave(server, 0.4, json=body, headers=announced(0, 0.4))
    time.sleep(3.5)
    stopped_at = server.count("step", 4450)
    assert stopped_at <= 17
    assert server.generate(seed=4451).status_code == 200
    assert server.count("step", 4450) <= stopped_at + 1


@pytest.mark.behaviour(44, 45)
def test_clients_that_leave_the_queue_cost_no_step(start_server: StartServer) -> None:
    server = start_server("--max-queue", "128")
    blocker = threading.Thread(target=server.generate, args=("a [slow:step:0.4]",), kwargs={"seed": 4500})
    blocker.start()
    until(lambda: server.count("begin", 4500) == 1)
    with ThreadPoolExecutor(60) as pool:
        seeds = range(4501, 4561)
        list(pool.map(lambda seed: send_and_leave(server, 0.4, json={"prompt": "b", "seed": seed}), seeds))
    blocker.join()
    assert server.generate(seed=4599).status_code == 200
    assert sum(server.count("begin", seed) for seed in seeds) == 0


@pytest.mark.behaviour(47)
def test_equal_requests_without_a_key_are_never_merged(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: server.generate(SLOW, seed=4700, headers=announced(1, 600)), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.count("begin", 4700) == 2


@pytest.mark.behaviour(40)
def test_a_full_queue_refuses_at_once(start_server: StartServer) -> None:
    server = start_server("--max-queue", "1")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(server.generate, "a [slow:step:0.5]", seed=4000 + i) for i in range(4)]
        until(lambda: server.count("begin", 4000) == 1 or any(future.done() for future in waiting))
        time.sleep(0.3)
        asked = time.monotonic()
        refused = server.generate(seed=4090)
        assert time.monotonic() - asked < 1
        answers = [future.result() for future in waiting]
    assert_error(refused, 429, "queue_full")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert server.count("begin", 4090) == 0


@pytest.mark.behaviour(41)
def test_a_wait_beyond_the_clients_patience_is_refused_at_once(server: Server) -> None:
    server.generate("a [slow:step:0.5]", seed=4100)  # from here on the server knows how slow it is
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.generate, "a [slow:step:0.5]", seed=4101, steps=20)
        until(lambda: server.count("step", 4101) >= 1)
        for headers in ({"x-request-timeout": "2"}, announced(0, 2), {"x-stainless-timeout": "2"}):
            refused = server.generate(seed=4102, steps=50, headers=headers)
            error = assert_error(refused, 429, "wait_exceeds_timeout")
            assert refused.headers["x-should-retry"] == "false"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert any(character.isdigit() for character in error["message"])
        running.result()
    assert server.count("begin", 4102) == 0


@pytest.mark.behaviour(42)
def test_a_job_that_passes_its_deadline_is_ended(server: Server) -> None:
    asked = time.monotonic()
    response = server.generate("a [slow:step:0.2]", seed=4200, steps=100, headers={"x-request-timeout": "1"})
    assert time.monotonic() - asked < 5
    assert_error(response, 504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"
    assert server.generate(seed=4201).status_code == 200
    assert server.count("step", 4200) <= 10


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan", "1e3", ""])
def test_a_timeout_that_is_none_is_refused(server: Server, timeout: str) -> None:
    assert_error(server.generate(headers={"x-request-timeout": timeout}), 400, "invalid_value")

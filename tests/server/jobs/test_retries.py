"""Clients that time out, retry, leave or send twice: how often the model runs, and who gets which answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI, RateLimitError

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, Server, assert_error, picture, png, until

SLOW = "a cat [slow:step:0.25]"
"""One second at four steps."""
BACK_OFF_S = 0.2
"""Before a retry; the official clients wait longer."""


def send_and_leave(server: Server, after_s: float, **options: Any) -> None:
    """A client whose read timeout ends after `after_s` seconds."""
    with (
        httpx.Client(base_url=server.url, verify=False, trust_env=False, timeout=after_s) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.post(GENERATIONS, **options)


def announced(retry: int, timeout_s: float) -> dict[str, str]:
    """The headers in which openai-python tells its timeout and which try this is. Its clock is ahead of ours."""
    return {"x-stainless-retry-count": str(retry), "x-stainless-read-timeout": str(timeout_s)}


@pytest.mark.behaviour(43)
def test_the_retry_of_a_client_that_timed_out_joins_its_job(server: Server) -> None:
    body = {"prompt": SLOW, "seed": 4300, "response_format": "b64_json"}
    send_and_leave(server, 0.5, json=body, headers=announced(0, 0.4))
    time.sleep(BACK_OFF_S)
    response = server.request("POST", GENERATIONS, json=body, headers=announced(1, 0.5))
    assert np.array_equal(picture(response.json()["data"][0]["b64_json"]), expected_pixels(4300, 64, 64))
    assert server.count("begin", 4300) == 1


@pytest.mark.behaviour(43)
def test_the_retry_of_a_form_joins_too(server: Server) -> None:
    """Each try has its own boundary, as httpx makes them."""
    fields, files = {"prompt": SLOW, "seed": "4310"}, {"image": png()}
    with (
        httpx.Client(base_url=server.url, verify=False, trust_env=False, timeout=0.5) as client,
        pytest.raises(httpx.ReadTimeout),
    ):
        client.post(EDITS, data=fields, files=files, headers=announced(0, 0.4))
    time.sleep(BACK_OFF_S)
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
def test_a_detached_job_without_a_retry_is_stopped(server: Server) -> None:
    body = {"prompt": SLOW, "seed": 4450, "steps": 60}
    send_and_leave(server, 0.4, json=body, headers=announced(0, 0.3))
    time.sleep(3.5)
    stopped_at = server.count("step", 4450)
    assert stopped_at <= 17
    assert server.generate(seed=4451).status_code == 200
    assert server.count("step", 4450) <= stopped_at + 1


@pytest.mark.fault(26)
@pytest.mark.behaviour(44, 45)
def test_clients_that_leave_the_queue_cost_no_step(start_server: StartServer) -> None:
    server, seeds = start_server("--max-queue", "128"), range(4501, 4561)

    def leave(seed: int) -> None:
        body, patient = {"prompt": "b", "seed": seed, "steps": 200}, {"x-request-timeout": "99999"}
        send_and_leave(server, 0.4, json=body, headers=patient)

    with blocking(server, seed=4500), ThreadPoolExecutor(30) as pool:
        list(pool.map(leave, seeds))
    assert server.generate(seed=4599).status_code == 200
    assert sum(server.count("begin", seed) for seed in seeds) == 0


@contextmanager
def blocking(server: Server, seed: int) -> Iterator[None]:
    """A long job that runs until the end of the block."""
    fields = {"prompt": "a [slow:step:0.2]", "seed": seed, "steps": 100, "stream": True}
    with server.http.stream("POST", GENERATIONS, json=fields):
        until(lambda: server.count("step", seed) >= 3)  # so that its steps are known to be slow
        yield


@pytest.mark.behaviour(47)
def test_equal_requests_without_a_key_are_never_merged(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: server.generate(SLOW, seed=4700, headers=announced(1, 600)), range(2)))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.count("begin", 4700) == 2


@pytest.mark.behaviour(40)
def test_a_full_queue_refuses_at_once(start_server: StartServer) -> None:
    server = start_server("--max-queue", "1")
    with blocking(server, seed=4000), ThreadPoolExecutor(4) as pool:
        leaving = [pool.submit(send_and_leave, server, 4, json={"prompt": "b", "steps": 200}) for _ in range(3)]
        until(
            lambda: (
                server.generate(steps=200, headers={"x-request-timeout": "1"}).json()["error"]["code"] == "queue_full"
            )
        )
        asked = time.monotonic()
        refused = server.generate(seed=4090, steps=200)
        assert time.monotonic() - asked < 1
        assert_error(refused, 429, "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        wait(leaving)
    assert server.count("begin", 4090) == 0


@pytest.mark.behaviour(41)
def test_a_wait_beyond_the_clients_timeout_is_refused_at_once(server: Server) -> None:
    with blocking(server, seed=4100):
        for headers in ({"x-request-timeout": "2"}, announced(0, 2), {"x-stainless-timeout": "2"}):
            refused = server.generate(seed=4102, steps=200, headers=headers)
            error = assert_error(refused, 429, "wait_exceeds_timeout")
            assert refused.headers["x-should-retry"] == "false"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert any(character.isdigit() for character in error["message"])
    assert server.count("begin", 4102) == 0


@pytest.mark.behaviour(41)
def test_the_official_client_does_not_come_back_for_that(server: Server) -> None:
    def asked() -> int:
        return server.log.read_text().count('"request_id": "asked-once"')

    name = {"x-request-id": "asked-once"}
    client = OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=2, default_headers=name)
    with blocking(server, seed=4110), client, pytest.raises(RateLimitError) as error:
        client.images.generate(prompt="b", extra_body={"steps": 200})
    assert error.value.code == "wait_exceeds_timeout"
    until(lambda: asked() > 0)  # the line is written after the answer
    assert asked() == 1


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

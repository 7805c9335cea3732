"""Idempotency-Key: one generation a key, the same answer for every copy."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import StartServer
from tests.server.running import GENERATIONS, Server, assert_error, until

SLOW = "a cat [slow:step:0.15]"


def send(server: Server, key: str, **fields: Any) -> httpx.Response:
    return server.generate(**{"prompt": SLOW, **fields}, headers={"idempotency-key": key})


@pytest.mark.behaviour(46)
@pytest.mark.parametrize("response_format", ["b64_json", "url", "file"])
def test_concurrent_copies_run_once_and_later_ones_are_replayed(server: Server, response_format: str) -> None:
    seed = {"b64_json": 4600, "url": 4610, "file": 4620}[response_format]

    def copy(_: int) -> httpx.Response:
        return send(server, f"key-{response_format}", seed=seed, n=2, response_format=response_format)

    with ThreadPoolExecutor(3) as pool:
        answers = [*pool.map(copy, range(3)), copy(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 3
    assert answers[3].headers["idempotent-replayed"] == "true"
    assert server.count("begin", seed) == 1


@pytest.mark.behaviour(46)
def test_a_random_seed_is_drawn_once(server: Server) -> None:
    seeds = {send(server, "key-random").json()["data"][0]["seed"] for _ in range(2)}
    assert len(seeds) == 1


@pytest.mark.behaviour(46)
def test_a_stream_is_replayed_as_its_pictures_alone(server: Server) -> None:
    def kinds() -> list[str]:
        answer = send(server, "key-stream", seed=4630, stream=True, partial_images=2, n=2)
        return [line for line in answer.text.splitlines() if line.startswith("event: ")]

    completed = "event: image_generation.completed"
    first = kinds()
    assert first.count(completed) == 2
    assert len(first) == 6
    assert kinds() == [completed] * 2
    assert server.count("begin", 4630) == 1


def test_a_stream_that_joins_is_told_of_the_failure(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        fields = {"prompt": "a [slow:step:0.1] [nan:vae]", "seed": 4635, "stream": True}
        answers = [future.result() for future in [pool.submit(send, server, "key-fails", **fields) for _ in range(2)]]
    for answer in answers:
        assert answer.status_code == 200
        assert [line for line in answer.text.splitlines() if line.startswith("event")] == ["event: error"]
    assert server.count("begin", 4635) == 1


@pytest.mark.behaviour(46)
def test_a_key_is_for_one_request(server: Server) -> None:
    assert send(server, "key-reused", seed=4640).status_code == 200
    assert_error(send(server, "key-reused", seed=4641), 422, "idempotency_key_reused")
    assert server.count("begin", 4641) == 0


def test_a_keyed_job_runs_on_when_its_client_leaves(server: Server) -> None:
    body = {"prompt": SLOW, "seed": 4650}
    headers = {"idempotency-key": "key-left"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post(GENERATIONS, json=body, headers=headers)
    until(lambda: server.count("decode", 4650) == 1)
    assert server.generate(**body, headers=headers).status_code == 200
    assert server.count("begin", 4650) == 1


def test_final_failures_are_kept_and_others_are_not(start_server: StartServer) -> None:
    server = start_server()
    for replayed in (None, "true"):
        failure = send(server, "key-nan", prompt="a [nan:vae]", seed=4660)
        assert_error(failure, 500, "non_finite_output")
        assert failure.headers.get("idempotent-replayed") == replayed
    assert server.count("begin", 4660) == 1
    for tries in (1, 2):
        assert_error(send(server, "key-oom", prompt="a [oom:step1]", seed=4670), 503, "insufficient_memory")
        assert server.count("begin", 4670) >= tries
    assert_error(send(server, "key-bad", n=0), 400, "invalid_value", "n")
    assert send(server, "key-bad", n=1).status_code == 200


def test_answers_outlive_a_restart_and_urls_follow_the_host(start_server: StartServer, tmp_path: Path) -> None:
    folder = ("--output-dir", str(tmp_path / "kept"))
    first = start_server(*folder)
    url, b64 = (send(first, f"key-{kind}", seed=4680, response_format=kind) for kind in ("url", "b64_json"))
    assert first.stop() == 0
    second = start_server(*folder)
    assert send(second, "key-b64_json", seed=4680, response_format="b64_json").content == b64.content
    moved = send(second, "key-url", seed=4680, response_format="url").json()
    assert moved["data"][0]["url"] == url.json()["data"][0]["url"].replace(first.url, second.url)
    assert second.get(moved["data"][0]["url"]).status_code == 200
    assert second.count("begin", 4680) == 0


def test_an_answer_of_urls_ends_with_them(start_server: StartServer) -> None:
    server = start_server("--url-ttl", "1")
    first = send(server, "key-ttl", seed=4690, response_format="url").json()["data"][0]["url"]
    until(lambda: server.get(first).status_code == 410)
    assert send(server, "key-ttl", seed=4690, response_format="url").json()["data"][0]["url"] != first
    assert server.count("begin", 4690) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "é"])
def test_keys_that_are_none(server: Server, key: str) -> None:
    headers = [(b"idempotency-key", key.encode()), (b"content-type", b"application/json")]
    response = server.request("POST", GENERATIONS, content=json.dumps({"prompt": "a"}), headers=httpx.Headers(headers))
    assert_error(response, 400, "invalid_value")


def test_keys_belong_to_their_clients(start_server: StartServer) -> None:
    server = start_server("--api-key", "one", "--api-key", "two")

    def post(key: str, seed: int) -> int:
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "same"}
        return server.generate(seed=seed, headers=headers).status_code

    assert [post("one", 1), post("two", 2), post("one", 2)] == [200, 200, 422]

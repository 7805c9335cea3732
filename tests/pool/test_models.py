"""Several models behind one server: chosen, loaded, given way, unloaded; through real sockets and processes."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import is_alive
from tests.fake_pipeline import expected_pixels, read_log
from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import Server, assert_error, picture, until

ROOM_FOR_ONE = {"FLUXSERVE_FAKE_FREE": str(1000 * 2**20)}
SLOW_LOAD = {"FLUXSERVE_FAKE_LOAD": "slow:1.5"}


def toml(tmp_path: Path, *tables: str, head: str = "") -> list[str]:
    """Options that name a file of these models; each takes 600 MiB."""
    file = tmp_path / "models.toml"
    models = [f'[[models]]\nmemory-budget = "600MiB"\n{table}\n' for table in tables]
    file.write_text("\n".join([head, *models]))
    return ["--config", str(file)]


def states(server: Server) -> dict[str, str]:
    return {model["id"]: model["state"] for model in server.get("/v1/models").json()["data"]}


def workers(server: Server) -> list[int]:
    """Of the processes that have loaded something, those that live."""
    return [act.detail for act in read_log(server.folder) if act.verb == "load" and is_alive(act.detail)]


def assert_drawn(server: Server, seed: int, **fields: Any) -> dict[str, Any]:
    answer = server.generate(seed=seed, response_format="b64_json", **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    for i, item in enumerate(body["data"]):
        assert (picture(item["b64_json"]) == expected_pixels(seed + i, 64, 64)).all()
    return body


def figure(server: Server, name: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"fluxserve_{name} ")), 0.0)


@pytest.mark.behaviour(160, 161, 162)
def test_each_is_loaded_when_it_is_first_asked_for(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(*toml(tmp_path, 'model = "a"', 'model = "b"\nserved-model-name = ["bee", "gpt-image-7"]'))
    assert server.get("/readyz").status_code == 200
    until(lambda: server.get("/v1/models/b").json()["native_area"] is not None)
    assert states(server) == {"a": "unloaded", "b": "unloaded", "bee": "unloaded", "gpt-image-7": "unloaded"}
    listed = server.get("/v1/models/bee").json()
    assert (listed["id"], listed["load_s"], listed["placement"]["peak_bytes"]) == ("bee", None, 600 * 2**20)
    assert not read_log(server.folder), "lists and probes load nothing"
    assert [assert_drawn(server, 1, model=name)["model"] for name in ("bee", "gpt-image-7")] == ["b", "b"]
    assert states(server)["a"] == "unloaded"
    assert assert_drawn(server, 2)["model"] == "a"
    assert [assert_drawn(server, 3, model=name)["model"] for name in ("default", "dall-e-3")] == ["a", "a"]
    assert set(states(server).values()) == {"loaded"}
    assert len(workers(server)) == 2
    unknown = assert_error(server.generate(model="c"), 404, "model_not_found", "model")
    assert "'a', also called 'default', 'b'" in unknown["message"]


@pytest.mark.behaviour(162)
def test_a_stream_tells_of_its_place_while_the_model_loads(start_server: StartServer) -> None:
    server = start_server("a", "b", variables=SLOW_LOAD)
    assert_drawn(server, 1, model="b")
    server.request("POST", "/v1/models/b/unload")
    until(lambda: states(server)["b"] == "unloaded")
    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(server.generate, model="b", stream=True, seed=seed) for seed in (2, 3)]
        until(lambda: states(server)["b"] == "loading")
        told = [stream.result().text for stream in streams]
    for text in told:
        assert "image_generation.completed" in text
        waits = [line for line in text.splitlines() if line.startswith(": waiting place=")]
        assert waits, text[:300]
        assert 500 < int(waits[0].rpartition("eta_ms=")[2]) < 5000
    assert sorted(text.partition("place=")[2][0] for text in told) == ["1", "2"]


@pytest.mark.behaviour(163)
def test_what_does_not_fit_makes_the_least_recently_used_give_way(start_server: StartServer, tmp_path: Path) -> None:
    tables = toml(tmp_path, 'model = "a"', 'model = "b"', 'model = "c"')
    server = start_server(*tables, variables={"FLUXSERVE_FAKE_FREE": str(1300 * 2**20)})
    for name in ("a", "b", "a"):
        assert_drawn(server, 1, model=name)
    assert states(server) == {"a": "loaded", "b": "loaded", "c": "unloaded"}
    assert_drawn(server, 2, model="c")
    assert states(server) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
    assert len(workers(server)) == 2
    assert figure(server, 'model_unloads_total{reason="room"}') == 1


@pytest.mark.fault(145)
@pytest.mark.behaviour(163)
def test_two_models_in_use_share_the_room_of_one(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(*toml(tmp_path, 'model = "a"', 'model = "b"'), "--max-queue", "100", variables=ROOM_FOR_ONE)
    end, drawn = time.monotonic() + 8, {"a": 0, "b": 0}

    def keep_drawing(name: str, caller: int) -> float:
        longest, seed = 0.0, 1000 * caller
        while time.monotonic() < end:
            asked, seed = time.monotonic(), seed + 1
            assert assert_drawn(server, seed, model=name, prompt="a [slow:step:0.02]")["model"] == name
            longest = max(longest, time.monotonic() - asked)
            drawn[name] += 1
        return longest

    with ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(keep_drawing, "ab"[caller % 2], caller) for caller in range(6)]
        waits = [caller.result() for caller in callers]
    assert min(drawn.values()) > 5, drawn
    assert max(waits) < 8, "none starves"
    assert len(workers(server)) <= 1
    assert figure(server, 'model_unloads_total{reason="room"}') >= 2


@pytest.mark.behaviour(164)
def test_an_idle_model_is_unloaded_and_nothing_of_it_is_left(start_server: StartServer) -> None:
    server = start_server("demo", "--idle-timeout", "1s")
    assert_drawn(server, 1)
    [pid] = workers(server)
    asked = time.monotonic()
    while states(server)["fluxserve/fake"] == "loaded":
        assert server.get("/readyz").status_code == 200
        assert time.monotonic() - asked < 10, "probes keep it loaded"
        time.sleep(0.1)
    until(lambda: not is_alive(pid))
    assert figure(server, 'rss_bytes{process="worker"}') == 0
    assert figure(server, 'rss_bytes{process="front"}') < 150 * 2**20
    assert figure(server, 'model_unloads_total{reason="idle"}') == 1
    assert figure(server, "worker_up") == 0
    assert server.get("/readyz").status_code == 200
    assert_drawn(server, 2)
    assert figure(server, "worker_up") == 1


def test_one_model_is_never_unloaded_by_itself(start_server: StartServer) -> None:
    server = start_server("demo")
    assert server.get("/v1/models/default").json()["idle_timeout_s"] is None
    assert server.get("/v1/models/default").json()["state"] == "loaded"


@pytest.mark.behaviour(165)
@pytest.mark.fault(146)
def test_models_are_loaded_and_unloaded_when_asked(start_server: StartServer) -> None:
    server = start_server("a", "b")
    assert server.request("POST", "/v1/models/b/load").json()["state"] == "loading"
    until(lambda: states(server) == {"a": "unloaded", "b": "loaded"})
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(assert_drawn, server, 5, model="b", prompt="a [slow:step:0.3]")
        until(lambda: server.count("step", 5) >= 1)
        assert server.request("POST", "/v1/models/b/unload").json()["state"] == "loaded"
        late = pool.submit(assert_drawn, server, 6, model="b")
        running.result()
        late.result()
    assert server.count("begin", 5) == 1
    assert sum(act.verb == "load" for act in read_log(server.folder)) == 2, "the later request had it loaded again"
    assert_error(server.request("POST", "/v1/models/c/load"), 404, "model_not_found", "model")


@pytest.mark.behaviour(165)
@pytest.mark.fault(144)
def test_with_keys_it_takes_an_admins(start_server: StartServer) -> None:
    server = start_server("a", "b", "--api-key", "k", "--admin-key", "boss", ready=False)
    paths = ("/v1/models/a/load", "/v1/models/a/unload")
    for path in paths:
        refused = server.request("POST", path, headers={"authorization": "Bearer k"})
        assert_answer(144, refused)
        assert_error(server.request("POST", path), 401, "invalid_api_key")
    assert not read_log(server.folder)
    boss = {"authorization": "Bearer boss"}
    assert server.request("POST", paths[0], headers=boss).json()["state"] == "loading"
    assert server.get("/v1/models", headers=boss).status_code == 200
    other = start_server("a", "b", "--api-key", "k", ready=False)
    assert_error(other.request("POST", paths[0], headers={"authorization": "Bearer k"}), 403, "admin_key_required")


@pytest.mark.behaviour(166)
def test_waits_count_the_load_across_restarts(start_server: StartServer, tmp_path: Path) -> None:
    flags = ["a", "b", "--output-dir", str(tmp_path / "kept")]
    first = start_server(*flags, variables=SLOW_LOAD)
    assert_drawn(first, 1, model="b")
    measured = first.get("/v1/models/b").json()["load_s"]
    assert 1.5 < measured < 10
    assert first.stop() == 0
    server = start_server(*flags, variables=SLOW_LOAD)
    assert server.get("/v1/models/b").json()["load_s"] == measured
    until(lambda: server.get("/v1/models/b").json()["native_area"] is not None)
    refused = server.generate(model="b", headers={"x-request-timeout": "1"})
    assert_error(refused, 429, "wait_exceeds_timeout")
    assert not read_log(server.folder)
    assert_drawn(server, 2, model="b")


@pytest.mark.fault(141)
def test_a_model_that_fails_to_load_leaves_the_others(start_server: StartServer) -> None:
    variables = {"FLUXSERVE_FAKE_LOAD": "exit:1:2-6"}
    server = start_server("a", "b", variables=variables)
    assert_drawn(server, 1, model="a")
    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(server.generate, model="b")
        assert_drawn(server, 2, model="a")
        assert_answer(141, failing.result(), 503)
    assert states(server) == {"a": "loaded", "b": "failed"}
    assert server.get("/readyz").status_code == 200
    assert_answer(141, server.generate(model="b"), 503)
    assert_answer(141, server.generate(model="a"), 200)
    server.request("POST", "/v1/models/b/load")
    until(lambda: states(server)["b"] == "loaded", 20)
    assert_drawn(server, 3, model="b")


@pytest.mark.fault(142)
def test_a_configuration_that_is_refused_is_told_before_anything_loads(start_server: StartServer) -> None:
    server = start_server("a", "b", ready=False, variables={"FLUXSERVE_FAKE_DESCRIBE": "config"})
    assert server.process.wait(20) == 78
    assert not read_log(server.folder)
    assert "no such device" in server.log.read_text()


@pytest.mark.fault(143)
def test_a_kill_while_it_loads_costs_no_request(start_server: StartServer) -> None:
    server = start_server("a", "b", variables=SLOW_LOAD)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(assert_drawn, server, 1, model="b")
        until(lambda: bool(workers(server)))
        os.kill(workers(server)[0], signal.SIGKILL)
        waiting.result()
    assert sum(act.verb == "load" for act in read_log(server.folder)) == 2


def test_a_drain_answers_what_waits_for_a_load(start_server: StartServer) -> None:
    server = start_server("a", "b", variables=SLOW_LOAD)
    until(lambda: server.get("/v1/models/b").json()["native_area"] is not None)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(assert_drawn, server, 1, model="b")
        until(lambda: states(server)["b"] == "loading")
        server.process.send_signal(signal.SIGTERM)
        waiting.result()
    assert server.process.wait(20) == 0
    assert not workers(server)


def test_models_load_at_the_start_where_that_is_asked(start_server: StartServer) -> None:
    server = start_server("a", "b", "--preload", ready=False)
    assert server.get("/readyz").json()["status"] == "starting"
    server.wait_ready()
    assert states(server) == {"a": "loaded", "b": "loaded"}


def test_the_log_names_no_path_of_a_model(start_server: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "secret place" / "mine"
    folder.mkdir(parents=True)
    server = start_server("a", str(folder), ready=False)
    names = json.dumps(server.get("/v1/models").json())
    assert "mine" in names
    assert "secret" not in names


def test_who_leaves_while_a_model_loads_leaves_no_job(start_server: StartServer) -> None:
    server = start_server("a", "b", variables=SLOW_LOAD)
    until(lambda: server.get("/v1/models/b").json()["native_area"] is not None)
    with pytest.raises(Exception, match="timed out"):
        server.http.post("/v1/images/generations", json={"prompt": "a", "model": "b", "seed": 9}, timeout=0.5)
    until(lambda: states(server)["b"] == "loaded")
    assert server.count("begin", 9) == 0

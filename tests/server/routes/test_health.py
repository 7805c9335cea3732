"""Liveness, readiness, figures, models; and what holds while the worker loads, dies or ends."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import EDITS, VARIATIONS, Server, assert_error, kill_worker, picture, png, until


@pytest.mark.fault(40)
@pytest.mark.behaviour(60)
def test_livez_answers_while_pictures_are_drawn(server: Server) -> None:
    drawing = threading.Thread(
        target=server.generate, args=("a [slow:step:0.1]",), kwargs={"size": "1024x1024", "n": 2}
    )
    drawing.start()
    waits = []
    while drawing.is_alive():
        asked = time.monotonic()
        assert server.get("/livez").json() == {"status": "ok"}
        waits.append(time.monotonic() - asked)
        time.sleep(0.01)
    assert sorted(waits)[len(waits) // 2] < 0.1
    assert max(waits) < 1


def test_ready_is_said_under_both_names(server: Server) -> None:
    for path in ("/readyz", "/health"):
        assert (server.get(path).status_code, server.get(path).json()) == (200, {"status": "ok"})


@pytest.mark.behaviour(49)
def test_while_the_model_loads(start_server: StartServer) -> None:
    server = start_server(ready=False, variables={"FLUXSERVE_FAKE_LOAD": "slow:3"})
    until(lambda: server.get("/readyz").json().get("stage") == "transformer")
    health = server.get("/readyz")
    assert (health.status_code, health.json()) == (
        503,
        {"status": "starting", "stage": "transformer", "done": 50, "total": 100},
    )
    assert server.get("/livez").status_code == 200
    for refused in (server.generate(), server.generate(stream=True), server.request("POST", "/v1/images/edits")):
        assert_error(refused, 503, "model_loading")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert_error(server.get("/v1/models"), 503, "model_loading")
    server.wait_ready()
    assert server.generate().status_code == 200


def test_polls_are_logged_where_something_is_missing(start_server: StartServer) -> None:
    server = start_server("--api-key", "k", ready=False, variables={"FLUXSERVE_FAKE_LOAD": "slow:1"})
    assert server.get("/readyz").status_code == 503
    assert_error(server.get("/metrics"), 401, "invalid_api_key")
    server.wait_ready()
    assert server.get("/livez").status_code == 200
    assert server.stop() == 0
    lines = map(json.loads, server.log.read_text().splitlines())
    polls = {(line["path"], line["status"]) for line in lines if "path" in line}
    assert polls == {("/readyz", 503), ("/metrics", 401)}


def test_metrics_tell_edits_and_variations_from_generations(start_server: StartServer) -> None:
    server = start_server()
    assert server.generate().status_code == 200
    for path, fields, count in ((EDITS, {"prompt": "a cat"}, 2), (VARIATIONS, {}, 3)):
        for _ in range(count):
            assert server.send_form(path, fields, [("image", png())]).status_code == 200
    streamed = server.send_form(VARIATIONS, {"stream": "true"}, [("image", png())])
    assert "event: image_edit.completed" in streamed.text, "of which OpenAI's clients know"
    counted = re.findall(
        r'request_duration_seconds_count{.*gen_ai_operation_name="(\w+)".*} (\d+)', server.get("/metrics").text
    )
    assert dict(counted) == {"image_generation": "1", "image_edit": "2", "image_variation": "4"}


@pytest.mark.behaviour(48)
def test_a_killed_worker_costs_no_request(start_server: StartServer) -> None:
    server = start_server()

    def draw(seed: int) -> bool:
        answer = server.generate("a [slow:step:0.2]", seed=seed, response_format="b64_json")
        assert answer.status_code == 200, answer.text
        return np.array_equal(picture(answer.json()["data"][0]["b64_json"]), expected_pixels(seed, 64, 64))

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(draw, seed) for seed in (1, 2, 3)]
        until(lambda: any(server.count("step", seed) >= 1 for seed in (1, 2, 3)))
        kill_worker(server)
        until(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/livez").status_code == 200
        assert all(answer.result() for answer in answers)
    assert server.wait_ready().generate().status_code == 200


@pytest.mark.behaviour(49)
def test_the_end_waits_for_what_was_accepted(start_server: StartServer) -> None:
    server = start_server()
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(server.generate, "a [slow:step:0.3]", seed=seed) for seed in (1, 2)]
        streamed = pool.submit(server.generate, "a [slow:step:0.3]", seed=3, stream=True)
        until(lambda: "fluxserve_requests_in_flight 3.0" in server.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/readyz").json()["status"] == "draining"
        refused = server.generate()
        assert_error(refused, 503, "shutting_down")
        assert refused.headers["connection"] == "close"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert [answer.result().status_code for answer in accepted] == [200, 200]
        assert "image_generation.completed" in streamed.result().text
    assert server.process.wait(20) == 0


def test_what_is_not_done_in_time_is_refused_at_the_end(start_server: StartServer) -> None:
    server = start_server("--drain-timeout", "0.5")
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server.generate, "a [slow:step:0.2]", seed=1, steps=100)
        until(lambda: server.count("step", 1) >= 1)
        server.process.send_signal(signal.SIGINT)
        assert_error(accepted.result(), 503, "shutting_down")
    assert server.process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(start_server: StartServer) -> None:
    server = start_server()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.generate, "a [slow:step:0.2]", seed=1, steps=200)
        until(lambda: server.count("step", 1) >= 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/readyz").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM


REFUSALS = [("checkpoint", 65, "is damaged"), ("source", 69, "is gated"), ("config", 78, "no such device")]


@pytest.mark.parametrize(("fault", "code", "says"), REFUSALS)
def test_a_model_that_cannot_be_served_ends_the_server(
    start_server: StartServer, fault: str, code: int, says: str
) -> None:
    """With the reason, said once."""
    server = start_server(ready=False, variables={"FLUXSERVE_FAKE_LOAD": fault})
    assert server.process.wait(20) == code
    assert "Traceback" not in server.log.read_text()
    assert server.log.read_text().count(says) == 1


def test_a_port_in_use_is_told_before_anything_loads(server: Server, start_server: StartServer) -> None:
    port = server.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match=f"port {port} on 127.0.0.1 is in use"):
        start_server("--port", port)


@pytest.mark.behaviour(59)
def test_every_served_name_is_listed(start_server: StartServer) -> None:
    names = ["gpt-image-2", "dall-e-3", "house/mouse", "gpt-image-2", "fluxserve/fake"]
    server = start_server(*[flag for name in names for flag in ("--served-model-name", name)])
    models = server.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["fluxserve/fake", "gpt-image-2", "dall-e-3", "house/mouse"]
    assert all({**model, "id": ""} == {**models[0], "id": ""} for model in models)
    for model in models:
        assert server.get(f"/v1/models/{model['id']}").json() == model
        assert server.generate(model=model["id"]).json()["model"] == "fluxserve/fake"
    assert server.get("/v1/models/default").json()["id"] == "fluxserve/fake"


@pytest.mark.behaviour(59)
def test_models(server: Server) -> None:
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("fluxserve/fake", "model", "fluxserve")
    assert {"default", "fake", "dall-e-3"} <= set(model["aliases"])
    limits = model["limits"]
    assert (limits["max_n"], limits["max_pixels"], limits["max_batch"]) == (10, 4_194_304, 1)
    assert (model["native_area"], model["default_size"]) == (4096, "64x64")
    assert model["defaults"]["solver"] == "euler"
    assert model["defaults"]["steps"] == {"low": 2, "medium": 4, "high": 4, "xhigh": 8, "max": 8}
    for name in ("fluxserve/fake", "fluxserve%2Ffake", "default", "fake", "gpt-image-1"):
        assert server.get(f"/v1/models/{name}").json() == model
    assert_error(server.get("/v1/models/other/one"), 404, "model_not_found", "model")


@pytest.mark.behaviour(62)
def test_the_figures_add_up(start_server: StartServer) -> None:
    server = start_server()
    server.generate()
    server.generate(n=0)
    server.generate("a [nan:vae]")
    server.generate(stream=True)
    server.generate(headers={"idempotency-key": "k"})
    server.generate(headers={"idempotency-key": "k"})
    figures = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert figures["fluxserve_requests_accepted_total"] == "4.0"
    assert figures["fluxserve_requests_answered_total"] == "4.0"
    assert (figures["fluxserve_requests_cancelled_total"], figures["fluxserve_requests_in_flight"]) == ("0.0", "0.0")
    assert figures['fluxserve_requests_rejected_total{code="invalid_value"}'] == "1.0"
    assert figures['fluxserve_jobs_total{outcome="ok"}'] == "3.0"
    assert figures['fluxserve_stage_seconds_count{stage="store"}'] == "2.0"  # a stream and a failure store nothing


@pytest.mark.fault(58)
@pytest.mark.behaviour(63)
def test_no_prompt_and_no_key_reaches_logs_or_figures(start_server: StartServer) -> None:
    server = start_server("--api-key", "canary-key")
    key = {"authorization": "Bearer canary-key"}
    for prompt in (
        "canary",
        "canary [nan:vae]",
        "canary [exit:step1:once]",
        "canary [error:encode]",
        "canary\0",
        "canary" * 9000,
    ):
        answer = server.generate(prompt, headers=key)
        assert answer.status_code == 200 or "canary" not in answer.text
    assert "canary" not in server.generate("canary", headers={"authorization": "Bearer canary-kei"}).text
    assert "canary" not in server.get("/metrics", headers=key).text
    assert "canary" not in server.log.read_text()


def test_the_front_maps_no_torch(server: Server) -> None:
    server.generate()
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "PIL" in maps or "_imaging" in maps or "pydantic" in maps
    for library in ("torch", "numpy", "safetensors", "transformers"):
        assert library not in maps

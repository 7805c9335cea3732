"""Prefer: respond-async: the answer comes later, at an address of its own."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fluxserve.engine.events import JobResult
from fluxserve.errors import InvalidRequest
from fluxserve.request import GenerationRequest, Timings
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.jobs import async_jobs
from fluxserve.server.jobs.async_jobs import AsyncJob, AsyncJobs
from fluxserve.server.jobs.homes import Claim
from fluxserve.server.jobs.idempotency import IdempotencyStore
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.store_folder import StoreFolder
from tests.fake_pipeline import expected_pixels
from tests.server import running
from tests.server.conftest import StartServer
from tests.server.running import EDITS, VARIATIONS, Server, assert_error, picture, png, until

LATER = {"prefer": "respond-async"}


def later(
    server: Server, prompt: str = "a cat", headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    answer = server.generate(prompt, headers={**LATER, **(headers or {})}, **fields)
    assert answer.status_code == 202, answer.text
    assert answer.headers["preference-applied"] == "respond-async"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["location"] == f"{server.url}/v1/jobs/{answer.json()['id']}"
    return answer


def finished(server: Server, location: str, **headers: str) -> dict[str, Any]:
    """The job's body once it has ended."""
    body: dict[str, Any] = {}

    def ended() -> bool:
        body.update(server.get(location, headers=headers).json())
        return body["status"] not in ("queued", "in_progress")

    until(ended, 30)
    return body


@pytest.mark.behaviour(151)
def test_the_answer_is_the_one_that_would_have_come(server: Server) -> None:
    fields = {"seed": 151001, "n": 2, "response_format": "b64_json"}
    now = server.generate(**fields).json()
    body = finished(server, later(server, **fields).headers["location"])
    result = body["result"]
    assert body["status"] == "completed"
    assert body["object"] == "image.job"
    assert body["expires_at"] > body["created_at"]
    assert result["data"] == now["data"]
    assert result.keys() == now.keys()
    url = finished(server, later(server, seed=151002).headers["location"])["result"]["data"][0]["url"]
    assert np.array_equal(picture(server.get(url).content), expected_pixels(151002, 64, 64))


@pytest.mark.behaviour(151)
@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
def test_edits_and_variations_too(server: Server, path: str) -> None:
    fields = {"prompt": "a cat", "seed": "151003"} if path == EDITS else {"seed": "151003"}
    answer = server.send_form(path, fields, [("image", png())], headers=LATER)
    assert answer.status_code == 202
    assert finished(server, answer.headers["location"])["result"]["data"][0]["seed"] == 151003


@pytest.mark.behaviour(151)
def test_what_is_known_on_the_way(server: Server) -> None:
    server.generate(seed=151004)
    first = later(server, "a cat [slow:step:0.3]", seed=151005)
    second = later(server, "a dog [slow:step:0.1]", seed=151006, num_inference_steps=200).json()
    assert second["status"] == "queued"
    assert second["place"] >= 1
    assert second["eta_ms"] > 0
    seen: list[int] = []

    def told() -> bool:
        state = server.get(first.headers["location"]).json()
        if state["status"] == "in_progress":
            seen.append(state["steps_done"])
            assert state["steps"] == 4
        return bool(state["status"] == "completed")

    until(told, 20)
    assert len(set(seen)) >= 3
    assert seen == sorted(seen)
    assert server.request("DELETE", f"/v1/jobs/{second['id']}").json()["status"] == "cancelled"


@pytest.mark.behaviour(151)
def test_events_are_streamed_from_the_start_and_again(server: Server) -> None:
    fields = {"stream": True, "partial_images": 2, "seed": 151007, "num_inference_steps": 6}
    location = later(server, "a cat [slow:step:0.1]", **fields).headers["location"]
    live = server.get(f"{location}/events").text
    assert live.count("image_generation.partial_image\n") == 2
    assert live.count("image_generation.completed\n") == 1
    finished(server, location)
    assert server.get(f"{location}/events").text.count("event: image_generation.completed\n") == 1
    bare = server.get(location).json()["result"]["data"][0]["b64_json"]
    assert np.array_equal(picture(base64.b64decode(bare)), expected_pixels(151007, 64, 64))


@pytest.mark.behaviour(151)
def test_events_hold_the_pictures_of_an_answer_of_urls(server: Server) -> None:
    location = later(server, seed=151012, response_format="url").headers["location"]
    finished(server, location)
    [data] = [line for line in server.get(f"{location}/events").text.splitlines() if line.startswith("data: ")]
    assert np.array_equal(picture(json.loads(data.removeprefix("data: "))["b64_json"]), expected_pixels(151012, 64, 64))


@pytest.mark.behaviour(151)
def test_deleting_cancels_within_a_step(server: Server) -> None:
    location = later(server, "a cat [slow:step:0.2]", seed=151008, num_inference_steps=100).headers["location"]
    until(lambda: server.count("step", 151008) >= 1)
    state = server.request("DELETE", location).json()
    assert (state["status"], state["error"]["code"]) == ("cancelled", "cancelled")
    seen = server.count("step", 151008)
    server.generate("a dog")
    assert server.count("step", 151008) <= seen + 2
    assert server.get(location).json()["status"] == "cancelled"
    done = later(server, seed=151009).headers["location"]
    assert finished(server, done)["status"] == "completed"
    assert server.request("DELETE", done).json()["status"] == "completed"


@pytest.mark.behaviour(151)
def test_a_client_that_has_left_stops_nothing(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        body = {"prompt": "a cat [slow:step:0.2]", "seed": 151010}
        location = client.post("/v1/images/generations", json=body, headers=LATER).headers["location"]
    assert finished(server, location)["status"] == "completed"


@pytest.mark.behaviour(151)
def test_failures_are_told_as_the_jobs(server: Server) -> None:
    state = finished(server, later(server, "a cat [nan:vae]").headers["location"])
    assert (state["status"], state["error"]["code"]) == ("failed", "non_finite_output")
    assert "result" not in state


@pytest.mark.behaviour(151)
def test_what_is_refused_is_refused_at_once(server: Server) -> None:
    assert_error(server.generate("", headers=LATER), 400, "invalid_value", "prompt")
    for fields in ({"response_format": "file"}, {}):
        headers = LATER if fields else {**LATER, "accept": "image/png"}
        answer = server.generate("a cat", headers=headers, **fields)
        assert_error(answer, 400, "conflicting_parameters", "response_format")
    for path in ("/v1/jobs/none", "/v1/jobs/none/events"):
        assert_error(server.get(path), 404, "job_not_found")
    assert_error(server.request("DELETE", "/v1/jobs/none"), 404, "job_not_found")


@pytest.mark.behaviour(151)
@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("respond-async, wait=20", 202),
        ("wait=5, Respond-Async; x=1", 202),
        ("wait=5", 200),
        ("respond-asynchronously", 200),
        ("handling=lenient", 200),
    ],
)
def test_the_header_is_read_as_it_is_written(server: Server, prefer: str, status: int) -> None:
    answer = server.generate("a cat", headers={"prefer": prefer})
    assert answer.status_code == status
    if "wait" in prefer and status == 202:
        assert answer.json()["status"] == "completed", "it waited"


@pytest.mark.behaviour(151)
def test_an_idempotency_key_is_one_job(server: Server) -> None:
    key = {"idempotency-key": "later-151011"}
    first = later(server, "a cat [slow:step:0.1]", key, seed=151011)
    assert later(server, "a cat [slow:step:0.1]", key, seed=151011).json()["id"] == first.json()["id"]
    assert_error(server.generate("a dog", headers={**LATER, **key}), 422, "idempotency_key_reused")
    finished(server, first.headers["location"])
    assert later(server, "a cat [slow:step:0.1]", key, seed=151011).json()["status"] == "completed"
    assert server.count("begin", 151011) == 1


@pytest.mark.behaviour(152)
def test_a_job_is_seen_by_its_own_key_alone(start_server: StartServer) -> None:
    server = start_server("--api-key", "one", "--api-key", "two")
    one, two = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
    location = later(server, "a cat [slow:step:0.2]", one, num_inference_steps=50).headers["location"]
    for path in (location, f"{location}/events"):
        assert_error(server.get(path, headers=two), 404, "job_not_found")
        assert_error(server.get(path), 401, "invalid_api_key")
    assert_error(server.request("DELETE", location, headers=two), 404, "job_not_found")
    assert server.get(location, headers=one).json()["status"] in ("queued", "in_progress")
    assert server.request("DELETE", location, headers=one).json()["status"] == "cancelled"


@pytest.mark.behaviour(152)
def test_it_survives_the_front_and_expires_with_its_urls(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("jobs")
    flags = ["--url-ttl", "12"]
    server = running.start(flags, folder).wait_ready()
    fields = {"seed": 152001, "response_format": "b64_json", "size": "128x64"}
    location = later(server, "the secret prompt", **fields).headers["location"]
    lost = later(server, "a cat [slow:step:1]").headers["location"].removeprefix(server.url)
    path = location.removeprefix(server.url)
    before = finished(server, location)
    assert b"secret" not in b"".join(file.read_bytes() for file in server.store.glob("*.job"))
    server.stop(9)
    server = running.start(flags, folder).wait_ready()
    after = server.get(path).json()
    assert after["result"]["data"] == before["result"]["data"]
    assert after["result"]["size"] == "128x64"
    assert server.get(f"{path}/events").text.count("event: image_generation.completed\n") == 1
    assert_error(server.get(lost), 404, "job_not_found")
    time.sleep(max(0, after["expires_at"] - time.time()) + 1.5)
    assert_error(server.get(path), 404, "job_not_found")
    assert not list(server.store.glob("*.job"))
    server.stop(9)


@pytest.mark.behaviour(152)
@pytest.mark.anyio
async def test_the_client_who_has_most_loses_its_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_jobs, "_MOST", 4)
    folder = StoreFolder(tmp_path / "store")
    jobs = AsyncJobs(folder, IdempotencyStore(folder, 60.0), 60.0)
    request = GenerationRequest("the secret", 64, 64, (1,), 1, None, 8, image=b"picture")
    resolved = ResolvedRequest(request, "image_generation", "b64_json", False, "low", ())

    async def work() -> Outcome:
        return Outcome(1, "fake", JobResult((), Timings(), 0, None))

    for id, client in [("0", "few"), *((str(number), "many") for number in range(1, 6))]:
        claim = await jobs.claim(id, client, f"request {id}", (1,))
        assert isinstance(claim, Claim)
        await jobs.open(AsyncJob(id, client, f"request {id}", resolved, time.time(), 0.0), claim, work())
        opened = await jobs.find(id, client)
        while opened.work is not None:
            await asyncio.sleep(0.01)
        assert opened.resolved.request.image is None, "nothing large is held once it has ended"
        assert (await jobs.outcome(opened)).model == "fake"
    assert (await jobs.find("0", "few")).id == "0"
    for gone in ("1", "2"):
        with pytest.raises(InvalidRequest, match="no such job"):
            await jobs.find(gone, "many")
    assert (await jobs.find("5", "many")).id == "5"
    assert len(list((tmp_path / "store").glob("*.job"))) == len(list((tmp_path / "store").glob("*.answer"))) == 4
    folder.close()

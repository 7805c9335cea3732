"""Real Ray Serve: two replicas of the demo, a store in common; replicas, workers, the ingress and a node are lost."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.cluster.ray_cluster import KEY, LONG, SMALL, STARTING_S, RayCluster, cluster
from tests.reliability.answers import assert_answer
from tests.server.running import EDITS, GENERATIONS, picture, png, until

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def served() -> Iterator[RayCluster]:
    with tempfile.TemporaryDirectory(prefix="fs-") as folder, cluster(Path(folder)) as running:
        running.deploy(models=[{"model": "demo", "min_replicas": 2, "max_replicas": 2}])
        running.wait_replicas(2)
        yield running


@pytest.fixture(scope="module")
def client(served: RayCluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as own:
        yield own


@pytest.mark.behaviour(108)
def test_the_official_client_finds_no_difference(served: RayCluster, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["demo"]
    url = client.images.generate(prompt="a", size="256x256").data[0].url  # type: ignore[index, union-attr]
    assert url is not None
    assert url.startswith(served.url)
    shown = [httpx.get(url, trust_env=False) for _ in range(8)]  # of whichever replica
    assert {(answer.status_code, answer.content) for answer in shown} == {(200, shown[0].content)}
    one = client.images.generate(prompt="a", size="256x256", response_format="b64_json", extra_body={"seed": 7})
    other = client.images.generate(prompt="a", size="256x256", response_format="b64_json", extra_body={"seed": 7})
    assert one.data[0].b64_json == other.data[0].b64_json  # type: ignore[index]
    events = list(client.images.generate(prompt="a", size="256x256", stream=True, partial_images=2))
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image", "partial_image", "completed"]
    edited = client.images.edit(image=("a.png", png(mode="RGBA")), prompt="b", response_format="b64_json")
    assert picture(edited.data[0].b64_json or "").shape == (64, 64, 3)  # type: ignore[index]
    with pytest.warns(DeprecationWarning, match="deprecated"):
        varied = client.images.create_variation(image=("a.png", png()), response_format="b64_json")
    assert len(varied.data or []) == 1
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a", model="nothing")


def test_events_come_one_by_one(served: RayCluster) -> None:
    body = {"prompt": "a", "stream": True, "partial_images": 3, **LONG}
    with served.http.stream("POST", GENERATIONS, json=body) as answer:
        lines = answer.iter_lines()
        first = next(line for line in lines if line.startswith("event: "))
        assert first.endswith("partial_image")
        drawn = served.figure("jobs_total")
        assert sum(1 for line in lines if line.startswith("event: ")) == 3
    until(lambda: served.figure("jobs_total") == drawn + 1)


@pytest.mark.behaviour(109)
def test_who_may_call_and_what_is_told(served: RayCluster) -> None:
    stranger = httpx.Client(base_url=served.url, trust_env=False, timeout=60)
    for path, body in ((GENERATIONS, {"prompt": "a"}), (EDITS, {"prompt": "a"}), ("/v1/models/demo/unload", {})):
        refused = stranger.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert stranger.get("/metrics").status_code == 401
    for junk in ("junk", "", ",,", "[::1", "1.2.3.4:x", "\xff", "a" * 4000):
        answer = served.http.post(
            GENERATIONS, json={"prompt": "a", **SMALL}, headers={"x-forwarded-for": junk.encode("latin-1")}
        )
        assert answer.status_code == 200, (junk, answer.text)
    for asked in ("mine-1", "a b", None):
        answer = served.http.get("/v1/models", headers={"x-request-id": asked} if asked else {})
        (told,) = answer.headers.get_list("x-request-id")
        assert (told == asked) == (asked == "mine-1")
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", told)
    figures = served.http.get("/metrics").text
    names = re.findall(r'fluxserve_worker_up{model="demo",replica="(\w+)"} 1.0', figures)
    assert len(set(names)) == 2
    assert 'fluxserve_worker_up{model="",' in figures, "the ingress is among them"


def test_a_worker_has_the_cpus_of_its_replica(served: RayCluster) -> None:
    served.deploy(models=[{"model": "demo", "cpus": 2, "max_replicas": 1}])
    until(lambda: [_threads(worker) for worker in served.workers()] == ["2"], STARTING_S)


def _threads(worker: int) -> str:
    variables = Path(f"/proc/{worker}/environ").read_bytes().decode().split("\0")
    return dict(each.partition("=")[::2] for each in variables if each)["OMP_NUM_THREADS"]


def test_a_rolling_update_fails_nobody(served: RayCluster) -> None:
    served.wait_replicas(1)
    answers: list[httpx.Response] = []
    with ThreadPoolExecutor(5) as threads:
        over = threads.submit(served.deploy, models=[{"model": "demo", "min_replicas": 2, "max_replicas": 2}])
        while not over.done():
            asked = [threads.submit(served.draw, seed) for seed in range(4)]
            answers += [each.result() for each in asked]
        over.result()
    assert answers
    assert {answer.status_code for answer in answers} == {200}, Counter(answer.text[:200] for answer in answers)
    served.wait_replicas(2)


@pytest.mark.fault(129)
def test_the_death_of_a_replica(served: RayCluster) -> None:
    served.wait_replicas(2)
    with ThreadPoolExecutor(12) as threads:
        keyed = [threads.submit(served.draw, seed, {"idempotency-key": f"lost {seed}"}, **LONG) for seed in range(4)]
        plain = [threads.submit(served.draw, seed, **LONG) for seed in range(10, 14)]
        streams = [threads.submit(served.draw, seed, stream=True, **LONG) for seed in range(20, 24)]
        until(lambda: served.figure("requests_in_flight") == 12, 30)
        os.kill(served.replicas()[0], signal.SIGKILL)
        for answer in keyed:
            assert_answer(129, answer.result(), 200)
        lost = [answer.result() for answer in plain if answer.result().status_code != 200]
        for answer in lost:
            assert_answer(129, answer, 503)
            assert answer.headers["retry-after"] == "1"
        ends = Counter(stream.result().text.strip().rpartition("\n\n")[2].partition("\n")[0] for stream in streams)
    assert set(ends) <= {"event: error", "event: image_generation.completed"}
    assert lost or ends["event: error"], "the replica had nothing"
    again = [served.draw(seed, {"idempotency-key": f"lost {seed}"}, **LONG) for seed in range(4)]
    for first, repeated in zip(keyed, again, strict=True):
        assert repeated.headers["idempotent-replayed"] == "true"
        assert repeated.json()["data"] == first.result().json()["data"]
    served.wait_replicas(2)


@pytest.mark.fault(130)
def test_the_death_of_a_worker(served: RayCluster) -> None:
    served.wait_replicas(2)
    with ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(served.draw, seed, **LONG) for seed in range(30, 36)]
        until(lambda: served.figure("requests_in_flight") == 6, 30)
        os.kill(served.workers()[0], signal.SIGKILL)
        for answer in asked:
            assert_answer(130, answer.result(), 200)
    served.wait_replicas(2)


@pytest.mark.fault(128)
def test_the_death_of_the_ingress(served: RayCluster) -> None:
    served.wait_replicas(2)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(served.draw, seed, **LONG) for seed in range(40, 44)]
        until(lambda: served.figure("requests_in_flight") == 4, 30)
        os.kill(served.replicas("ingress")[0], signal.SIGKILL)
        for answer in asked:
            assert_answer(128, answer.result(), 503)
    served.wait_replicas(2)


def test_replicas_come_and_go_with_the_requests(served: RayCluster) -> None:
    """From none: a request waits for the first."""
    served.deploy(models=[{"model": "demo", "min_replicas": 0, "max_replicas": 2, "idle_timeout": 15}])
    until(lambda: _state(served) == ("unloaded", 0), STARTING_S)
    with ThreadPoolExecutor(8) as threads:
        loads = [threads.submit(_draw_until, served, lambda: _state(served)[1] == 2, seed) for seed in range(50, 58)]
        statuses = Counter(status for load in loads for status in load.result())
    assert set(statuses) == {200}
    until(lambda: _state(served) == ("unloaded", 0), STARTING_S)
    assert served.workers() == []


def _draw_until(served: RayCluster, over: Callable[[], bool], seed: int) -> list[int]:
    """The statuses of one request after the other."""
    statuses, end = [], time.monotonic() + STARTING_S
    while not over() and time.monotonic() < end:
        statuses.append(served.draw(seed, **LONG).status_code)
    return statuses


def _state(served: RayCluster) -> tuple[str, int]:
    """Asked for now and then: whoever asks a replica all the time keeps it."""
    time.sleep(2)
    (model,) = served.http.get("/v1/models").json()["data"]
    return model["state"], model["workers"]

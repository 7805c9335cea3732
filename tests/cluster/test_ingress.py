"""The ingress before real replicas in this process: what it decides itself, what it passes on, what a death costs."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message, Scope

from fluxserve.cluster.figures import Figures
from fluxserve.cluster.ingress import Ingress
from fluxserve.cluster.replica import Replica, Told
from fluxserve.cluster.served import ServedModel, ServedModels
from fluxserve.cluster.settings import ClusterSettings, read_cluster
from fluxserve.errors import QueueFull, ReplicaLost
from tests.cluster.requests import Sent, scope_of, send, send_json

pytestmark = pytest.mark.anyio

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
SMALL = {"size": "64x64", "response_format": "b64_json"}


class Near:
    """Replicas of one model in this process. dying: how many of the next answers break off after so many messages."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self.dying: list[int] = []
        self.asked: list[tuple[Scope, bytes]] = []
        self.closed = 0
        self.full = False

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        self.asked.append((scope, body))
        if self.full:
            raise QueueFull("full", retry_after_s=2)
        if not self.replicas:
            raise ReplicaLost("none", retry_after_s=1)
        left = self.dying.pop() if self.dying else None
        try:
            async for message in self.replicas[0].answer(scope, body):
                if left == 0:
                    raise ReplicaLost("gone", retry_after_s=1)
                left = None if left is None else left - 1
                yield message
        finally:
            self.closed += 1

    async def first_told(self) -> Told:
        return (await self.tell())[0]

    async def tell(self) -> list[Told]:
        return [await replica.tell() for replica in self.replicas]

    async def figures(self) -> list[Figures]:
        return [await replica.figures() for replica in self.replicas]


class Cluster:
    """Two models, the second without a replica until it is given one."""

    def __init__(self, settings: ClusterSettings, replica: Replica) -> None:
        self.first, self.second = self.backends = Near([replica]), Near([])
        pairs = zip(settings.models, self.backends, strict=True)
        self.models = [ServedModel(deployed, settings, backend) for deployed, backend in pairs]
        served = ServedModels(tuple(self.models), settings.server, started=1)
        self.ingress = Ingress("in", served, settings.server)


SETTINGS = {
    "api_key": ["secret"],
    "allowed_host": ["127.0.0.1"],
    "rate_limit": 1000,
    "models": [{"model": "demo"}, {"model": "demo", "served_model_name": ["second"]}],
}
KEY = [("authorization", "Bearer secret")]


@pytest.fixture(scope="module")
async def settings(tmp_path_factory: pytest.TempPathFactory) -> ClusterSettings:
    folder = tmp_path_factory.mktemp("pictures")
    return read_cluster({**SETTINGS, "output_dir": str(folder / "own"), "store": f"file://{folder}/shared"})


@pytest.fixture(scope="module")
async def replica(settings: ClusterSettings) -> AsyncIterator[Replica]:
    started = await Replica.start("one", settings.models[0], settings)
    yield started
    await started.stop()


@pytest.fixture
async def cluster(settings: ClusterSettings, replica: Replica) -> Cluster:
    built = Cluster(settings, replica)
    await built.models[0].learn()
    return built


async def cancelled_jobs(backend: Near) -> float:
    (figures,) = await backend.figures()
    samples = [sample for family in figures.families for sample in family.samples]
    ended = [sample for sample in samples if sample.name == "fluxserve_jobs_total"]
    return sum(sample.value for sample in ended if sample.labels["outcome"] == "cancelled")


@pytest.mark.behaviour(108)
async def test_one_address_for_all_models(cluster: Cluster) -> None:
    ingress, first, second = cluster.ingress, cluster.first, cluster.second
    drawn = await send_json(ingress, GENERATIONS, KEY, prompt="a", **SMALL)
    assert drawn.status == 200
    assert base64.b64decode(json.loads(drawn.body)["data"][0]["b64_json"]).startswith(b"\x89PNG")
    for fields in ({"model": "default"}, {"model": "demo"}, {"model": "gpt-image-1"}):
        answer = await send_json(ingress, GENERATIONS, KEY, prompt="a", **SMALL, **fields)
        assert answer.status == 200, answer.body
    assert (len(first.asked), len(second.asked)) == (4, 0)

    named = await send_json(ingress, GENERATIONS, KEY, prompt="a", model="second")
    assert (named.status, named.error["code"]) == (503, "replica_lost")
    form = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nsecond\r\n--x--\r\n'
    of_form = [("content-type", "multipart/form-data; boundary=x"), *KEY]
    assert (await send(ingress, EDITS, form[:30], form[30:], headers=of_form)).error["code"] == "replica_lost"
    tool = {"tools": [{"type": "image_generation", "model": "second"}], "model": "gpt-5", "input": "a"}
    assert (await send_json(ingress, "/v1/responses", KEY, **tool)).error["code"] == "replica_lost"
    assert [body for _, body in second.asked[1:2]] == [form]

    early = await send_json(ingress, GENERATIONS, KEY, prompt="a", model="nothing")
    assert (early.status, early.error["code"]) == (503, "model_loading"), "the second may be called that"
    cluster.models[1].engine.card = cluster.models[0].engine.card
    unknown = await send_json(ingress, GENERATIONS, KEY, prompt="a", model="nothing")
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    broken = await send(ingress, GENERATIONS, b"{", headers=[("content-type", "application/json"), *KEY])
    assert (broken.status, broken.error["code"]) == (400, "invalid_json")


@pytest.mark.behaviour(109)
async def test_what_the_ingress_decides_itself(cluster: Cluster) -> None:
    ingress, first = cluster.ingress, cluster.first
    refused = await send_json(ingress, GENERATIONS, prompt="a")
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    elsewhere = [*KEY, ("host", "evil.example")]
    stranger = Sent([b"{}"])
    scope = scope_of(GENERATIONS, headers=elsewhere)
    scope["headers"] = [each for each in scope["headers"] if each != (b"host", b"127.0.0.1")]
    await ingress(scope, stranger.receive, stranger.send)
    assert (stranger.status, stranger.error["code"]) == (403, "host_not_allowed")
    assert (await send(ingress, "/livez", method="GET")).status == 200
    assert not first.asked

    listed = json.loads((await send(ingress, "/v1/models", method="GET", headers=KEY)).body)["data"]
    assert [(each["id"], each["state"], each["workers"]) for each in listed] == [
        ("demo", "loaded", 1),
        ("second", "loading", 0),
    ]
    one = json.loads((await send(ingress, "/v1/models/default", method="GET", headers=KEY)).body)
    assert (one["id"], one["limits"]["max_n"]) == ("demo", 10)
    loading = await send(ingress, "/v1/models/demo/unload", headers=KEY)
    assert loading.status in (403, 405)

    named = [*KEY, ("x-request-id", "mine"), ("content-type", "application/json")]
    answer = await send(ingress, GENERATIONS, b'{"prompt":"a","size":"64x64"}', headers=named)
    assert answer.status == 200
    assert "x-request-id" not in answer.headers, "Ray's proxy puts it there"
    passed_on = dict(first.asked[-1][0]["headers"])
    assert (passed_on[b"x-request-id"], passed_on[b"content-length"]) == (b"mine", b"29")
    assert first.asked[-1][0]["client"] == ("junk", 0)

    figures = (await send(ingress, "/metrics", method="GET", headers=KEY)).body.decode()
    assert re.search(r'fluxserve_requests_answered_total{model="demo",replica="one"} [1-9]', figures)
    assert 'fluxserve_requests_rejected_total{code="invalid_api_key",model="",replica="in"} 1.0' in figures
    assert figures.count("# TYPE fluxserve_worker_up gauge") == 1


@pytest.mark.fault(129)
async def test_what_the_death_of_a_replica_costs(cluster: Cluster) -> None:
    ingress, first = cluster.ingress, cluster.first
    keyed = [*KEY, ("idempotency-key", "k")]

    first.dying = [0]
    plain = await send_json(ingress, GENERATIONS, KEY, prompt="a", **SMALL)
    assert (plain.status, plain.error["code"], plain.headers["retry-after"]) == (503, "replica_lost", "1")
    assert "x-should-retry" not in plain.headers
    first.dying = [0]
    assert (await send_json(ingress, GENERATIONS, keyed, prompt="b", **SMALL)).status == 200
    before = len(first.asked)
    first.dying = [0, 0, 0]
    hopeless = await send_json(ingress, GENERATIONS, keyed, prompt="b", **SMALL)
    assert (hopeless.status, len(first.asked) - before) == (503, 2), "what kills whom it reaches comes to an end"

    first.dying = [3]
    stream = await send_json(ingress, GENERATIONS, KEY, prompt="c", stream=True, partial_images=2, **SMALL)
    assert stream.status == 200
    last = stream.body.decode().strip().split("\n\n")[-1]
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "replica_lost"
    first.dying = [1]
    with pytest.raises(ReplicaLost):  # the head is out: the connection is cut, as the server in front does then
        await send_json(ingress, GENERATIONS, KEY, prompt="d", **SMALL)

    first.full = True
    full = await send_json(ingress, GENERATIONS, KEY, prompt="a")
    assert (full.status, full.error["code"], full.headers["retry-after"]) == (429, "queue_full", "2")


async def test_who_leaves_ends_the_job(cluster: Cluster) -> None:
    first = cluster.first
    before = await cancelled_jobs(first)
    body = json.dumps({"prompt": "a", "size": "1024x1024", "steps": 50}).encode()
    sent = Sent([body])
    scope = scope_of(GENERATIONS, headers=[("content-type", "application/json"), *KEY])
    running = asyncio.ensure_future(cluster.ingress(scope, sent.receive, sent.send))
    while not first.asked:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    sent.gone.set()
    async with asyncio.timeout(10):
        await running
        while await cancelled_jobs(first) == before:
            await asyncio.sleep(0.01)
        while not first.closed:
            await asyncio.sleep(0.01)
    assert sent.messages == []

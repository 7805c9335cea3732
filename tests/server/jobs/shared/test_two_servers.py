"""Two servers of one store: what either wrote both serve, and what both are asked for is drawn once."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.jobs.shared.conftest import StartPair
from tests.server.jobs.shared.storage import KEY_ID, Storage, ask, shared_folder
from tests.server.running import Server, assert_error, picture, until

Pair = tuple[Server, Server]
SLOW = "a cat [slow:step:0.2]"


def path_of(url: str) -> str:
    return urlsplit(url).path


def keyed(server: Server, key: str, prompt: str = SLOW, **fields: object) -> httpx.Response:
    return server.generate(prompt, headers={"idempotency-key": key}, **fields)


def begun(servers: Pair, seed: int) -> int:
    return sum(server.count("begin", seed) for server in servers)


def seeds_of(answer: httpx.Response) -> list[int]:
    return [item["seed"] for item in answer.json()["data"]]


@pytest.mark.behaviour(105)
def test_each_serves_the_others_pictures(pair: Pair) -> None:
    for seed, (drawing, serving) in enumerate((pair, pair[::-1]), 105_000):
        with openai.OpenAI(base_url=f"{drawing.url}/v1", api_key="none") as client:
            drawn = client.images.generate(prompt="a cat", n=2, extra_body={"seed": seed})
        for number, image in enumerate(drawn.data or []):
            assert image.url is not None
            answers = [server.get(path_of(image.url)) for server in (drawing, serving)]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].content == answers[1].content
            assert answers[1].headers["content-type"] == "image/png"
            assert 3500 < int(answers[1].headers["cache-control"].split("max-age=")[1].split(",")[0]) <= 3600
            assert np.array_equal(picture(answers[1].content), expected_pixels(seed + number, 64, 64))
            part = serving.get(path_of(image.url), headers={"range": "bytes=2-9"})
            assert (part.status_code, part.content) == (206, answers[0].content[2:10])


@pytest.mark.behaviour(105)
@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_types_are_told_whatever_the_store_keeps(pair: Pair, output_format: str) -> None:
    url = pair[0].generate(output_format=output_format, response_format="url", seed=105_010).json()["data"][0]["url"]
    assert pair[1].get(path_of(url)).headers["content-type"] == f"image/{output_format}"


@pytest.mark.behaviour(105)
def test_all_sweep_what_has_expired(tmp_path: Path, start_pair: StartPair) -> None:
    pair = start_pair(shared_folder(tmp_path / "shared"), "--url-ttl", "1")
    urls = [server.generate().json()["data"][0]["url"] for server in pair]
    until(lambda: all(server.get(path_of(url)).status_code == 410 for server in pair for url in urls))
    until(lambda: not list((tmp_path / "shared").rglob("*.png")), 30)
    for server in pair:
        assert_error(server.get(path_of(urls[0])), 410, "image_expired")
        assert "could not be swept" not in server.log.read_text()


def test_names_that_no_server_made_reach_no_object(pair: Pair, storage: Storage) -> None:
    name = path_of(pair[0].generate(seed=105_020).json()["data"][0]["url"]).rpartition("/")[2]
    forged = ("A" if name[0] != "A" else "B") + name[1:]
    storage.write(f"pictures/{forged}", b"foreign")
    for asked in (forged, "A" * 54 + ".png"):
        assert_error(pair[1].get(f"/images/{asked}"), 404, "image_not_found")
    assert_error(pair[1].get("/images/../.fluxserve-store"), 404, "not_found")


@pytest.mark.behaviour(106)
@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_a_key_that_is_sent_to_both_at_once_is_drawn_once(pair: Pair, response_format: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        sent = [
            pool.submit(keyed, pair[number % 2], f"both-{response_format}", n=2, response_format=response_format)
            for number in range(6)
        ]
        answers = [one.result() for one in sent]
    later = [keyed(server, f"both-{response_format}", n=2, response_format=response_format) for server in pair]
    assert {answer.status_code for answer in (*answers, *later)} == {200}
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 5
    assert begun(pair, seeds_of(answers[0])[0]) == 1
    if response_format == "b64_json":
        assert len({answer.content for answer in (*answers, *later)}) == 1
    else:
        names = {tuple(path_of(item["url"]) for item in answer.json()["data"]) for answer in (*answers, *later)}
        assert len(names) == 1
        assert {server.get(path).status_code for server in pair for path in next(iter(names))} == {200}


@pytest.mark.behaviour(106)
def test_many_keys_at_once_are_drawn_once_each(pair: Pair) -> None:
    def send(number: int) -> httpx.Response:
        return keyed(pair[number % 2], f"many-{number // 2}", "a cat", response_format="b64_json")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(40)))
    assert {answer.status_code for answer in answers} == {200}
    for number in range(0, 40, 2):
        assert answers[number].content == answers[number + 1].content
        assert begun(pair, seeds_of(answers[number])[0]) == 1


@pytest.mark.behaviour(106)
def test_the_openai_client_is_answered_once_over_both(pair: Pair) -> None:
    def draw(server: Server) -> str | None:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            drawn = client.images.generate(
                prompt=SLOW, response_format="b64_json", extra_headers={"idempotency-key": "openai"}
            )
        return drawn.data[0].b64_json if drawn.data else None

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(draw, pair))) == 1


@pytest.mark.behaviour(106)
def test_a_stream_at_the_other_is_the_same_picture(pair: Pair) -> None:
    def events(server: Server) -> list[dict[str, object]]:
        answer = keyed(server, "stream", seed=106_010, stream=True, partial_images=1)
        lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(events, pair)
    assert begun(pair, 106_010) == 1
    assert first[-1]["b64_json"] == second[-1]["b64_json"]
    assert sorted(map(len, (first, second))) == [1, 2], "the one that draws is shown a preview"


@pytest.mark.behaviour(106)
def test_a_key_is_for_one_request_over_both(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(keyed, pair[0], "reused", seed=106_020)
        until(lambda: pair[0].count("begin", 106_020) == 1)
        assert_error(keyed(pair[1], "reused", seed=106_021), 422, "idempotency_key_reused")
        assert drawing.result().status_code == 200
    assert_error(keyed(pair[1], "reused", seed=106_021), 422, "idempotency_key_reused")
    assert pair[1].count("begin", 106_021) == 0


@pytest.mark.behaviour(106)
def test_failures_over_both(pair: Pair) -> None:
    """A final one is the key's answer; another frees the key, whose seeds stay."""
    for number, server in enumerate(pair):
        failure = keyed(server, "nan", "a [nan:vae]", seed=106_030)
        assert_error(failure, 500, "non_finite_output")
        assert failure.headers.get("idempotent-replayed") == (None, "true")[number]
    assert begun(pair, 106_030) == 1
    for server in pair:
        assert_error(keyed(server, "oom", "a [oom:step1]", seed=106_040), 503, "insufficient_memory")
    assert pair[1].count("begin", 106_040) >= 1
    assert_error(keyed(pair[0], "bad", n=0), 400, "invalid_value", "n")
    assert keyed(pair[1], "bad", "a cat").status_code == 200


@pytest.mark.behaviour(106)
def test_who_waits_at_the_other_has_its_limit(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(keyed, pair[0], "limit", "a [slow:step:0.8]", seed=106_050)
        until(lambda: pair[0].count("begin", 106_050) == 1)
        headers = {"idempotency-key": "limit", "x-request-timeout": "0.5"}
        late = pair[1].generate("a [slow:step:0.8]", headers=headers, seed=106_050)
        assert_error(late, 504, "deadline_exceeded")
        assert drawing.result().status_code == 200


@pytest.mark.behaviour(107)
@pytest.mark.parametrize("response_format", ["b64_json", "url"])
def test_a_job_is_told_of_by_both(pair: Pair, response_format: str) -> None:
    fields = {"headers": {"prefer": "respond-async", "idempotency-key": f"job-{response_format}"}}
    asked = [server.generate(SLOW, response_format=response_format, n=2, **fields) for server in pair]
    assert [answer.status_code for answer in asked] == [202, 202]
    first, second = (answer.json() for answer in asked)
    assert first["id"] == second["id"]
    path = f"/v1/jobs/{first['id']}"
    assert pair[1].get(path).json()["status"] == "in_progress"
    assert_error(pair[1].get(path + "x"), 404, "job_not_found")
    events = [line for line in pair[1].get(f"{path}/events").text.splitlines() if line.startswith("data: ")]
    answers = [server.get(path).json() for server in pair]
    assert [answer["status"] for answer in answers] == ["completed"] * 2
    assert [item["seed"] for item in answers[0]["result"]["data"]] == seeds_in(answers[1])
    assert begun(pair, seeds_in(answers[0])[0]) == 1
    drawn = [base64.b64decode(json.loads(line.removeprefix("data: "))["b64_json"]) for line in events]
    for seed, data in zip(seeds_in(answers[0]), drawn, strict=True):
        assert np.array_equal(picture(data), expected_pixels(seed, 64, 64))


def seeds_in(job: dict[str, dict[str, list[dict[str, int]]]]) -> list[int]:
    return [item["seed"] for item in job["result"]["data"]]


@pytest.mark.behaviour(107)
def test_the_other_tells_why_a_job_failed(pair: Pair) -> None:
    for prompt, code, status in (("a [nan:vae]", "non_finite_output", "failed"), (SLOW, "cancelled", "cancelled")):
        path = pair[0].generate(prompt, headers={"prefer": "respond-async"}).headers["location"]
        if status == "cancelled":
            pair[0].request("DELETE", path)
        job: dict[str, dict[str, str]] = {}

        def is_over(path: str = path_of(path), job: dict[str, dict[str, str]] = job) -> bool:
            job.update(pair[1].get(path).json())
            return job["status"] != "in_progress"

        until(is_over)
        assert (job["status"], job["error"]["code"]) == (status, code)


@pytest.mark.behaviour(105)
def test_who_asks_is_sent_on_where_the_store_signs(bucket: Storage, start_server: StartServer) -> None:
    flags = ("--store", bucket.url, "--store-redirect")
    server = start_server(*flags, variables=dict(bucket.variables))
    url = server.generate(seed=105_030, output_format="webp", response_format="url").json()["data"][0]["url"]
    answer = server.get(url)
    assert answer.status_code == 307
    assert answer.headers["cache-control"] == "no-store"
    there = ask("GET", answer.headers["location"])
    assert (there.status_code, there.headers["content-type"]) == (200, "image/webp")
    assert picture(there.content).shape == (64, 64, 3)
    assert_error(server.get(f"/images/{'A' * 54}.png"), 404, "image_not_found")
    assert KEY_ID not in server.log.read_text()

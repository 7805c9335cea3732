"""What a shared store and the servers that share it do to each other: none of it costs a second answer or a secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.fake_pipeline import read_log
from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.jobs.shared.storage import BUCKET, KEY_ID, SECRET, Storage, ask, s3_server, shared_folder
from tests.server.running import ROOT, Server, until

SLOW = "a cat [slow:step:0.5]"


def start_two(start_server: StartServer, storage: Storage, *flags: str) -> list[Server]:
    variables = dict(storage.variables)
    servers = [start_server("--store", storage.url, *flags, ready=False, variables=variables) for _ in range(2)]
    return [server.wait_ready() for server in servers]


def keyed(server: Server, key: str, prompt: str = SLOW, **fields: object) -> httpx.Response:
    return server.generate(prompt, headers={"idempotency-key": key}, response_format="b64_json", **fields)


def seeds_begun(server: Server) -> list[int]:
    """Without the warm-up image's."""
    return [act.seed for act in read_log(server.folder) if act.verb == "begin"][1:]


@pytest.mark.fault(122)
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_key_outlives_its_server(kind: str, request: pytest.FixtureRequest, start_server: StartServer) -> None:
    storage = storage_of(kind, request)
    first, second = start_two(start_server, storage)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(keyed, first, "lost")
        until(lambda: len(seeds_begun(first)) == 1)
        first.process.send_signal(signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            lost.result()
    answers = [keyed(second, "lost"), keyed(second, "lost")]
    assert_answer(122, answers[0])
    assert answers[0].content == answers[1].content
    assert [item["seed"] for item in answers[0].json()["data"]] == seeds_begun(first) == seeds_begun(second)


@pytest.mark.fault(123)
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_server_that_stood_still_gives_the_others_answer(
    kind: str, request: pytest.FixtureRequest, start_server: StartServer
) -> None:
    first, second = start_two(start_server, storage_of(kind, request))
    with ThreadPoolExecutor(2) as pool:
        stopped = pool.submit(keyed, first, "stopped")
        until(lambda: len(seeds_begun(first)) == 1)
        first.process.send_signal(signal.SIGSTOP)
        taken_over = pool.submit(keyed, second, "stopped").result()
        first.process.send_signal(signal.SIGCONT)
        late = stopped.result()
    for answer in (taken_over, late):
        assert_answer(123, answer)
    assert late.content == taken_over.content
    assert seeds_begun(first) == seeds_begun(second), "the lease had ended"
    assert "lease" in first.log.read_text()


@pytest.mark.fault(124)
@pytest.mark.parametrize("damage", ["flipped", "emptied", "removed"])
def test_what_was_damaged_is_never_served(pair: tuple[Server, Server], storage: Storage, damage: str) -> None:
    first, second = pair

    def spoil(path: str, data: bytes) -> None:
        storage.write(path, {"flipped": data[:-1] + bytes([data[-1] ^ 1]), "emptied": b"", "removed": None}[damage])

    def draw(server: Server, response_format: str) -> httpx.Response:
        answer = server.generate(response_format=response_format, headers={"idempotency-key": f"picture {damage}"})
        assert_answer(124, answer, 200)
        return answer

    path = urlsplit(draw(first, "url").json()["data"][0]["url"]).path
    spoil(path.replace("/images/", "pictures/"), first.get(path).content)
    assert_answer(124, second.get(path), 410 if damage == "removed" else 404)
    again = urlsplit(draw(second, "url").json()["data"][0]["url"]).path
    assert again != path
    assert_answer(124, first.get(again), 200)


@pytest.mark.fault(124)
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_answer_or_claim_is_drawn_anew(pair: tuple[Server, Server], storage: Storage, damage: str) -> None:
    spoilt = {"cut": b"0" * 64 + b"\n{", "emptied": b"", "removed": None}[damage]
    for folder in ("answers", "claims"):
        before = storage.list(folder)
        key = f"{damage} {folder}"
        assert_answer(124, keyed(pair[0], key, "a cat"), 200)
        [path] = storage.list(folder) - before
        storage.write(path, spoilt)
        answers = [keyed(server, key, "a cat") for server in pair[::-1]]
        for answer in answers:
            assert_answer(124, answer, 200)
        assert answers[0].content == answers[1].content
        assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]


@pytest.mark.fault(125)
def test_a_store_that_goes_away_and_comes_back(start_server: StartServer) -> None:
    with s3_server() as (storage, process):
        server = start_server("--store", storage.url, variables=dict(storage.variables))
        url = server.generate(seed=1).json()["data"][0]["url"]
        process.kill()
        process.wait()
        assert_without(server)
        assert_answer(125, server.get(url), 503)
        port = int(storage.endpoint.rpartition(":")[2])
    with s3_server(port):
        until(lambda: server.get("/readyz").status_code == 200)
        assert_answer(125, server.generate(seed=2), 200)
        assert_answer(125, keyed(server, "back", "a cat"), 200)
    log = server.log.read_text()
    assert "the shared store fails" in log
    assert SECRET not in log
    assert KEY_ID not in log


@pytest.mark.fault(125)
def test_a_store_that_hangs(start_server: StartServer) -> None:
    with s3_server() as (storage, process):
        server = start_server("--store", storage.url, variables=dict(storage.variables))
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert_without(server)
        assert time.monotonic() - began < 120
        process.send_signal(signal.SIGCONT)
        until(lambda: server.get("/readyz").status_code == 200, 30)
        assert_answer(125, keyed(server, "back", "a cat"), 200)


def assert_without(server: Server) -> None:
    """What is answered while the store does not."""
    until(lambda: server.get("/readyz").json()["status"] == "store", 60)
    assert server.get("/livez").status_code == 200
    refused = keyed(server, "away", "a cat")
    assert_answer(125, refused, 503)
    assert refused.json()["error"]["code"] == "store_unavailable"
    assert int(refused.headers["retry-after"]) > 0
    full = server.generate(seed=3)
    assert_answer(125, full, 503)
    assert full.json()["error"]["code"] == "storage_full"
    assert_answer(125, server.generate(seed=4, response_format="b64_json"), 200)


@pytest.mark.fault(126)
@pytest.mark.parametrize(
    "mistake", ["no endpoint", "no bucket", "foreign objects", "a foreign mark", "a file", "no rights"]
)
def test_a_store_that_cannot_be_used(mistake: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bucket: Storage = request.getfixturevalue("bucket")
    url, variables = bucket.url, dict(bucket.variables)
    match mistake:
        case "no endpoint":
            variables["AWS_ENDPOINT"] = "http://127.0.0.1:9"
        case "no bucket":
            url = "s3://nobodys/prefix"
        case "foreign objects":
            url = f"s3://{BUCKET}/foreign"
            ask("PUT", f"{bucket.endpoint}/{BUCKET}/foreign/holiday.png", b"mine").raise_for_status()
        case "a foreign mark":
            url = f"s3://{BUCKET}/marked"
            ask("PUT", f"{bucket.endpoint}/{BUCKET}/marked/.fluxserve-store", b"mine").raise_for_status()
        case "a file":
            (tmp_path / "file").touch()
            url = f"file://{tmp_path}/file"
        case "no rights":
            url = "file:///proc/fluxserve"
    serve = [sys.executable, "-m", "tests.server.serve", "tests.fake_worker", "--port", "0", "--store", url]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run(serve, env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 78, ended.stderr
    assert f"--store {url}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert SECRET not in ended.stderr
    assert KEY_ID not in ended.stderr


def storage_of(kind: str, request: pytest.FixtureRequest) -> Storage:
    if kind == "folder":
        folder: Path = request.getfixturevalue("tmp_path")
        return shared_folder(folder / "shared")
    found: Storage = request.getfixturevalue("bucket")
    return found

"""Two nodes of a Ray cluster, simulated on this machine; one is lost."""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.cluster.ray_cluster import LONG, cluster
from tests.reliability.answers import assert_answer
from tests.server.running import until

pytestmark = pytest.mark.ray


@pytest.mark.fault(129)
def test_one_node_of_two_is_lost() -> None:
    with tempfile.TemporaryDirectory(prefix="fs-") as folder, cluster(Path(folder), nodes=2, cpus=1) as running:
        running.deploy(models=[{"model": "demo", "min_replicas": 2, "max_replicas": 2}])
        running.wait_replicas(2)
        with ThreadPoolExecutor(8) as threads:
            asked = [
                threads.submit(running.draw, seed, {"idempotency-key": f"node {seed}"}, **LONG) for seed in range(8)
            ]
            until(lambda: running.figure("requests_in_flight") >= 4, 30)
            running.lose_node()
            for answer in asked:
                assert_answer(129, answer.result(), 200)
        urls = [running.draw(seed, response_format="url").json()["data"][0]["url"] for seed in range(3)]
        assert all(httpx.get(url, trust_env=False).status_code == 200 for url in urls)
        assert json.loads(running.http.get("/v1/models").text)["data"][0]["workers"] == 1

"""Whatever becomes of the worker, a request has its one answer, and the next one is served."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.fake_pipeline import expected_pixels, read_log
from tests.faults import FAULTS
from tests.reliability.answers import assert_answer
from tests.server import running
from tests.server.conftest import StartServer
from tests.server.running import Server, picture, until


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose worker dies often."""
    server = running.start([], tmp_path_factory.mktemp("doomed")).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def assert_drawn(fault: int, server: Server, prompt: str, seed: int) -> None:
    """The request is answered with its own picture."""
    response = server.generate(prompt, seed=seed, response_format="b64_json")
    assert_answer(fault, response, 200)
    assert np.array_equal(picture(response.json()["data"][0]["b64_json"]), expected_pixels(seed, 64, 64))


@pytest.mark.fault(33, 37, 38)
@pytest.mark.parametrize(
    ("fault", "script"),
    [(38, "kill:step2"), (33, "exit:text"), (33, "segv:vae"), (33, "kill:encode")]
    + [(37, f"cuda:{stage}") for stage in ("text", "step2", "vae")],
)
def test_a_death_costs_no_request(doomed: Server, fault: int, script: str) -> None:
    assert_drawn(fault, doomed, "a cat", seed=1)
    assert_drawn(fault, doomed, f"a cat [{script}:once]", seed=33)
    assert_drawn(fault, doomed, "a cat", seed=2)


@pytest.mark.fault(33, 37)
@pytest.mark.parametrize(("fault", "script"), [(33, "kill:step1"), (37, "cuda:step1")])
def test_poison_harms_no_neighbour(doomed: Server, fault: int, script: str) -> None:
    seed = 3300 + fault
    with ThreadPoolExecutor(4) as pool:
        poison = pool.submit(doomed.generate, f"poison [{script}]", seed=seed)
        neighbours = [
            pool.submit(assert_drawn, fault, doomed, "a [slow:step:0.05]", neighbour) for neighbour in (3, 4, 5)
        ]
        assert_answer(fault, poison.result(), 500)
        for neighbour in neighbours:
            neighbour.result()
    assert doomed.count("begin", seed) == 2
    again = doomed.generate(f"poison [{script}]", seed=seed)
    assert_answer(fault, again, 500)
    assert doomed.count("begin", seed) == 2


@pytest.mark.fault(36, 39)
@pytest.mark.parametrize(
    ("fault", "script"),
    [(36, f"oom:{stage}") for stage in ("text", "step2", "vae", "encode")] + [(39, "nan:step2"), (39, "nan:vae")],
)
def test_a_failure_is_one_requests_own(doomed: Server, fault: int, script: str) -> None:
    before = set(doomed.store.iterdir())
    response = doomed.generate(f"a cat [{script}]", n=2)
    assert_answer(fault, response)
    assert "cat" not in response.text
    assert set(doomed.store.iterdir()) == before
    assert_drawn(33, doomed, "a cat", seed=6)


@pytest.mark.fault(35)
def test_a_crash_loop_ends_the_server_and_answers_everybody(start_server: StartServer) -> None:
    server = start_server(variables={"FLUXSERVE_FAKE_LOAD": "exit:1:2-99"})
    assert_drawn(33, server, "a cat", seed=1)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.generate, "a [slow:step:0.2] [kill:step2]", seed=seed) for seed in (2, 3, 4)]
        until(lambda: server.get("/readyz").json()["status"] == "restarting")
        assert server.get("/livez").status_code == 200
        for answer in waiting:
            assert_answer(35, answer.result())
    assert server.process.wait(20) in FAULTS[35].exit_codes
    assert sum(act.verb == "load" for act in read_log(server.folder)) == 6

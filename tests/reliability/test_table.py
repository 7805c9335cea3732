"""The table is held against a server that is wrong, and turns red; and the libraries are the ones that are safe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from threading import Thread

import httpx
import pytest

from tests.faults import FAULTS, Answer
from tests.reliability.answers import assert_answer, wrong_versions

ANSWERS = [(number, answer) for number, fault in FAULTS.items() for answer in fault.answers]


@pytest.mark.parametrize(("fault", "answer"), ANSWERS)
def test_a_wrong_answer_is_told_from_a_right_one(fault: int, answer: Answer) -> None:
    for response in wrong_versions(answer):
        with pytest.raises((AssertionError, KeyError)):
            assert_answer(fault, response, answer.status)


class WrongServer(BaseHTTPRequestHandler):
    """Answers as servers do that keep no promise."""

    def do_GET(self) -> None:
        body, status = {"/200": (b"{}", 200), "/detail": (b'{"detail":"x"}', 400), "/text": (b"no", 500)}[self.path]
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def wrong_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), WrongServer) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_wrong_server_turns_every_refusal_red(wrong_url: str) -> None:
    refusals = [(fault, answer) for fault, answer in ANSWERS if answer.code is not None]
    for path in ("/200", "/detail", "/text"):
        response = httpx.get(wrong_url + path, trust_env=False)
        for fault, answer in refusals:
            with pytest.raises((AssertionError, ValueError)):
                assert_answer(fault, response, answer.status)


FLOORS = {
    "starlette": "1.0.1",
    "h11": "0.16",
    "python-multipart": "0.0.31",
    "pillow": "12.2",
    "torch": "2.10",
    "transformers": "5.3",
}


@pytest.mark.parametrize("name", FLOORS)
def test_no_library_is_older_than_its_fixes(name: str) -> None:
    def numbers(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]

    assert numbers(metadata.version(name)) >= numbers(FLOORS[name])
    declared = [line for line in metadata.requires("fluxserve") or [] if line.lower().startswith(name)]
    assert any(f">={FLOORS[name]}" in line for line in declared), declared

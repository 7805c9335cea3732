"""What the log and the figures hold of a request, and what never gets there."""

from __future__ import annotations

import json

import pytest

from tests.server.conftest import StartServer
from tests.server.running import exchange

CANARY, KEY = "canary7Qx", "key-canary7Qx"


@pytest.mark.fault(58)
def test_the_log_tells_of_each_request_and_of_no_secret(start_server: StartServer) -> None:
    server = start_server("--api-key", KEY)
    auth = {"authorization": f"Bearer {KEY}"}
    drawn = server.generate(CANARY, seed=58, n=2, headers={**auth, "x-request-id": "mine-1"})
    assert drawn.status_code == 200
    for prompt in (f"{CANARY} [nan:vae]", f"{CANARY} [error:step1]", f"{CANARY} [exit:step1:once]", CANARY + "\0"):
        answer = server.generate(prompt, headers=auth)
        assert answer.status_code == 200 or CANARY not in answer.text
    assert CANARY not in server.generate(CANARY, headers={"authorization": f"Bearer {KEY}x"}).text
    forged = b'GET /a%0a%0d{"status":200}%1b[2J HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n'
    exchange(server, [forged + f"Authorization: Bearer {KEY}\r\n\r\n".encode()])
    assert CANARY not in server.get("/metrics", headers=auth).text
    assert server.stop() == 0
    text = server.log.read_text()
    assert CANARY not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "process", "message"} <= line.keys() for line in lines)
    [told] = [line for line in lines if line.get("request_id") == "mine-1"]
    assert (told["status"], told["code"], told["n"], told["size"], told["seed"]) == (200, None, 2, "64x64", 58)
    assert (told["steps"], told["prompt_length"], told["attempts"]) == (4, len(CANARY), 1)
    assert told["denoise_ms"] >= 0
    assert told["client"] not in (KEY, "")
    [odd] = [line for line in lines if line.get("path", "").startswith("/a")]
    assert (odd["path"], odd["status"]) == ('/a??{"status":200}?[2J', 404)
    assert {line["code"] for line in lines if "code" in line} >= {None, "non_finite_output", "internal_error"}


@pytest.mark.fault(58)
def test_prompts_are_logged_where_the_operator_asks_for_them(start_server: StartServer) -> None:
    """In one line each, cut, with nothing raw in it that a terminal or a reader of lines would act on."""
    server = start_server("--log-prompts", "--api-key", KEY)
    auth = {"authorization": f"Bearer {KEY}"}
    prompt = 'a "cat"\n{"status": 500}\u2028\u202e\x85 ' + "\u732b" * 1200
    assert server.generate(prompt, headers={**auth, "x-request-id": "drawn"}).status_code == 200
    assert server.generate("a [nan:vae]", headers={**auth, "x-request-id": "failed"}).status_code == 500
    assert server.stop() == 0
    text = server.log.read_text(encoding="utf-8")
    lines = {line["request_id"]: line for line in map(json.loads, text.splitlines()) if "request_id" in line}
    assert (lines["drawn"]["prompt"], lines["drawn"]["prompt_length"]) == (prompt[:1000], len(prompt))
    assert (lines["failed"]["prompt"], lines["failed"]["status"]) == ("a [nan:vae]", 500)
    assert lines["drawn"]["message"].endswith(f" {prompt[:1000]!r}")
    assert text.isascii()
    assert KEY not in text

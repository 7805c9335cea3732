"""Holds an answer against the row of its fault, and takes answers to raw bytes apart."""

from __future__ import annotations

import json

import httpx

from tests.faults import FAULTS, Answer

_WITH_RETRY_AFTER = {
    "queue_full",
    "wait_exceeds_timeout",
    "rate_limit_exceeded",
    "model_loading",
    "shutting_down",
    "replica_lost",
    "store_unavailable",
}
_HOPES = {None: None, "true": True, "false": False}


def assert_answer(fault: int, response: httpx.Response, status: int | None = None) -> None:
    """The answer is the right one, and whole: OpenAI's error object, Retry-After where it belongs.

    status: tells which one this case must get, where the row has answers of several.
    """
    right = [answer for answer in FAULTS[fault].answers if status in (None, answer.status)]
    assert len({answer.status for answer in right}) == 1, f"say which status of fault {fault}"
    code = error_code(response)
    answer = Answer(response.status_code, code, _HOPES[response.headers.get("x-should-retry")])
    assert answer in right, f"fault {fault} got {answer}: {response.text[:300]}"
    assert ("retry-after" in response.headers) == (code in _WITH_RETRY_AFTER)
    assert 1 <= int(response.headers.get("retry-after", 1)) <= 60


def error_code(response: httpx.Response) -> str | None:
    """The code of an error, which must have OpenAI's shape; None for an answer that is none."""
    if response.status_code < 400:
        return None
    body = response.json()
    assert list(body) == ["error"], body
    assert list(body["error"]) == ["message", "type", "param", "code"], body
    assert body["error"]["message"]
    return str(body["error"]["code"])


def parse(raw: bytes) -> httpx.Response:
    """The one answer that the bytes hold, and nothing after it."""
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    response = httpx.Response(int(status.split()[1]), headers=headers, content=body)
    assert len(body) == int(response.headers["content-length"]), "more than one answer"
    return response


def wrong_versions(answer: Answer) -> list[httpx.Response]:
    """Answers of a server that does what `answer` does, but for one thing."""
    right = _response(answer.status, answer.code, answer.should_retry)
    wrong = [_response(answer.status + 1, answer.code, answer.should_retry), _response(500, "other", None)]
    if answer.code is not None:
        wrong += [
            _response(answer.status, answer.code, True),
            _response(200, None, answer.should_retry),
            httpx.Response(answer.status, headers=right.headers, json={"detail": "wrong"}),
            httpx.Response(answer.status, headers=right.headers, json={"error": answer.code}),
        ]
    if "retry-after" in right.headers:
        wrong += [_response(answer.status, answer.code, answer.should_retry, seconds) for seconds in ("", "0", "61")]
    return wrong


def _response(status: int, code: str | None, should_retry: bool | None, retry_after: str = "5") -> httpx.Response:
    headers = {} if should_retry is None else {"x-should-retry": json.dumps(should_retry)}
    if retry_after and code in _WITH_RETRY_AFTER:
        headers["retry-after"] = retry_after
    error = {"message": "no", "type": "x", "param": None, "code": code}
    return httpx.Response(status, headers=headers, json={"error": error} if status >= 400 else {})

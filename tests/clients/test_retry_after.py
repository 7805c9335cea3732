"""What OpenAI's clients do when they are told to come back later, row by row of docs/interop_retries.md."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.clients.environments import node_modules, python_with_openai
from tests.clients.retry_after import CLIENTS, GIVES_UP, OWN, RETRIES
from tests.server.conftest import StartServer, start_server

__all__ = ["start_server"]

ROWS = list(RETRIES)


class _Refusing(BaseHTTPRequestHandler):
    """Refuses the first try of each row and draws at the second. The key tells the row."""

    tries: Counter[str]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        row = self.headers["authorization"].removeprefix("Bearer row-")
        self.tries[row] += 1
        again = self.tries[row] > 1
        body = b'{"created": 1, "data": [{"b64_json": "AA=="}]}' if again else b'{"error": {"message": "later"}}'
        self.send_response(200 if again else 429)
        for name, value in {} if again else RETRIES[ROWS[int(row)]].headers.items():
            self.send_header(name, _dated(value))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def _dated(value: str) -> str:
    match = re.fullmatch(r"\{in (\d+)\}", value)
    if match is None:
        return value
    return format_datetime(datetime.now(UTC) + timedelta(seconds=int(match[1])), usegmt=True)


@pytest.fixture
def refusing() -> Iterator[ThreadingHTTPServer]:
    handler = type("Refusing", (_Refusing,), {"tries": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


PYTHON_PROGRAM = """
import json, sys, time
from openai import OpenAI, RateLimitError

pauses = []
time.sleep = pauses.append
told = []
for row in range(int(sys.argv[2])):
    pauses.clear()
    try:
        OpenAI(base_url=sys.argv[1], api_key=f"row-{row}", max_retries=1).images.generate(prompt="a", model="b")
        told.append(pauses[0])
    except RateLimitError:
        told.append(None)
print(json.dumps(told))
"""
NODE_PROGRAM = """
import OpenAI from "openai";

const LIMIT = 987654, wait = globalThis.setTimeout;
let pauses = [];
globalThis.setTimeout = (then, ms, ...rest) => {
  if (new Error().stack.includes("sleep")) { pauses.push(ms > 0 ? ms : 0); return wait(then, 0, ...rest); }
  return wait(then, ms, ...rest);
};
const told = [];
for (let row = 0; row < Number(process.argv[3]); row++) {
  pauses = [];
  try {
    const client = new OpenAI({ baseURL: process.argv[2], apiKey: `row-${row}`, maxRetries: 1, timeout: LIMIT });
    await client.images.generate({ prompt: "a", model: "b" });
    told.push(pauses[0] / 1000);
  } catch (error) {
    if (error.status !== 429) throw error;
    told.push(null);
  }
}
console.log(JSON.stringify(told));
process.exit(0);
"""


@pytest.mark.behaviour(116)
@pytest.mark.parametrize(
    ("column", "language", "version"),
    [(column, language, version) for column, (language, versions) in CLIENTS.items() for version in versions],
)
def test_when_clients_come_back(
    column: str, language: str, version: str, refusing: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """They are run against a socket; only their pauses are noted instead of waited for."""
    if language == "python":
        command = [str(python_with_openai(version)), "-c", PYTHON_PROGRAM]
    else:
        (tmp_path / "node_modules").symlink_to(node_modules(f"openai@{version}") / "node_modules")
        (tmp_path / "program.mjs").write_text(NODE_PROGRAM)
        command = ["node", "program.mjs"]
    command += [f"http://127.0.0.1:{refusing.server_port}/v1", str(len(ROWS))]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert result.returncode == 0, result.stderr
    told = [_told(pause) for pause in json.loads(result.stdout)]
    assert dict(zip(ROWS, told, strict=True)) == {name: getattr(seen, column) for name, seen in RETRIES.items()}


def _told(pause: float | None) -> str:
    """As the table has it; dates have whole seconds, and some of one passes on the way."""
    if pause is None:
        return GIVES_UP
    if 0.3 < pause <= 0.5:
        return OWN
    whole = next((whole for whole in (30, 90, 300) if whole - 3 < pause <= whole), pause)
    return f"{whole:g} s"


@pytest.mark.behaviour(116)
def test_what_is_told_here_is_honoured_by_all(start_server: StartServer) -> None:
    """A refusal's Retry-After is of whole seconds, from 1 to 60."""
    server = start_server("--rate-limit", "1", "--api-key", "sesame")
    answers = [server.generate(headers={"authorization": "Bearer sesame"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    told = answers[1].headers["retry-after"]
    assert 1 <= int(told) <= 60
    assert not {"retry-after-ms", "x-should-retry"} & set(answers[1].headers)

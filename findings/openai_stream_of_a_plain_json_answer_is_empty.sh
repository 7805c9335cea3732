#!/usr/bin/env bash
# openai 3.57.0, httpx as it brings.
#
# images.generate(stream=True) against a server that does not stream and answers 200 with application/json. One expects the
# picture, or an error that says that no events came.
# Seen: the iterator ends at once without an event and without an error; the body is thrown away. A program that waits for the
# completed event sees nothing at all. Servers must stream or refuse; clients should check that an event came.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "openai==3.57.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai


BODY = json.dumps({"created": 1, "data": [{"b64_json": "aGVsbG8="}]}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
try:
    events = list(client.images.generate(model="gpt-image-1", prompt="a", stream=True, timeout=20))
except Exception as error:
    print("raises", type(error).__name__, error)
    sys.exit(1)
print("events:", events)
sys.exit(0 if not events else 1)
PY

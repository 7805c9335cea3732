#!/usr/bin/env bash
# openai 3.57.0, httpx as it brings.
#
# The standard of server-sent events says that an event whose data is empty is not dispatched (HTML Living Standard, 9.2.6), so
# that a server may send "event: ping" alone to keep a connection alive. One expects images.generate(stream=True) to pass over it.
# Seen: the iterator parses the empty data as JSON and raises JSONDecodeError; the picture behind it is lost. Comments
# (": ping") are passed over: use those.
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


PICTURE = json.dumps({"type": "image_generation.completed", "b64_json": "aGVsbG8="})


class Handler(BaseHTTPRequestHandler):
    start = ""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = f"{self.start}event: image_generation.completed\ndata: {PICTURE}\n\n".encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", max_retries=0)
seen = {}
for name, start in (("nothing", ""), ("a comment", ": ping\n\n"), ("an event without data", "event: ping\n\n")):
    Handler.start = start
    try:
        seen[name] = len(list(client.images.generate(model="gpt-image-1", prompt="a", stream=True, timeout=20)))
    except Exception as error:
        seen[name] = type(error).__name__
print("events behind:", seen)
sys.exit(0 if seen == {"nothing": 1, "a comment": 1, "an event without data": "JSONDecodeError"} else 1)
PY

#!/usr/bin/env bash
# openai-python 2.8.0 and 3.57.0.
#
# A client with max_retries=2 is answered 429 with Retry-After: 121. One expects what earlier versions do: a length out
# of bounds is left aside, and the client comes back after its own pause of about half a second.
# Seen: 2.8.0 does (for anything over 60), and gets its answer; 3.57.0 raises RateLimitError at once, without a second
# request, as if it had no retries. With 120 it would have waited two minutes. A server that tells a long wait turns the
# client's retries off.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/ask.py" <<'PY'
import http.server
import threading

import openai

requests = []


class BusyOnce(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        requests.append(self.path)
        first = len(requests) == 1
        body = b'{"error": {"message": "busy"}}' if first else b'{"created": 1, "data": []}'
        self.send_response(429 if first else 200)
        if first:
            self.send_header("Retry-After", "121")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), BusyOnce)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=2)
try:
    client.images.generate(prompt="a")
except openai.RateLimitError:
    pass
print(len(requests))
PY
seen=""
for version in 2.8.0 3.57.0; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install --quiet "openai==$version"
  seen="$seen $version:$("$work/$version/bin/python" "$work/ask.py")"
done
echo "requests sent:$seen"
[ "$seen" = " 2.8.0:2 3.57.0:1" ]

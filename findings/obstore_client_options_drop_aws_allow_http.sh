#!/usr/bin/env bash
# obstore 0.12.1.
#
# AWS_ALLOW_HTTP=true beside AWS_ENDPOINT=http://... lets an S3 store speak http. One expects a timeout given in
# client_options to leave that as it is.
# Seen: any client_options put the variable out of force, and each request fails with "builder error" before anything is
# sent; nothing names the scheme in the first line. Say "allow_http": True in client_options as well.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "obstore==0.12.1"
"$work/venv/bin/python" - <<'PY'
import http.server
import os
import sys
import threading

import obstore
from obstore.store import from_url

asked = []


class Empty(http.server.BaseHTTPRequestHandler):
    """Has nothing, and counts who asks."""

    def do_HEAD(self):
        asked.append(self.path)
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Empty)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1", AWS_ALLOW_HTTP="true")
os.environ["AWS_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
reached = []
for options in ({}, {"timeout": "5s"}, {"timeout": "5s", "allow_http": True}):
    store = from_url("s3://bucket", retry_config={"max_retries": 0}, **({"client_options": options} if options else {}))
    before = len(asked)
    try:
        obstore.head(store, "object")
    except Exception as error:
        print(options, "->", type(error).__name__, str(error).splitlines()[0])
    reached.append(len(asked) > before)
print("the server was asked:", reached)
sys.exit(0 if reached == [True, False, True] else 1)
PY

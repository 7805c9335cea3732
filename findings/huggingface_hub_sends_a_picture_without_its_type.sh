#!/usr/bin/env bash
# huggingface_hub 2.4.0.
#
# InferenceClient.image_to_image(png) posts the picture's bytes as they are. One expects Content-Type: image/png, since
# the client reads the bytes anyway when a prompt comes with them, and sends JSON with its type then.
# Seen: there is no Content-Type at all, so that a server has to look at the bytes; with a prompt the same picture goes
# as base64 within application/json.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "huggingface_hub==2.4.0" "pillow==13.0.0"
"$work/venv/bin/python" - <<'PY'
import http.server
import io
import sys
import threading

from huggingface_hub import InferenceClient
from PIL import Image

file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "PNG")
picture = file.getvalue()
seen = []


class Echo(http.server.BaseHTTPRequestHandler):
    """Notes what a request is said to be, and answers with a picture."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen.append((self.headers["Content-Type"], body == picture))
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(picture)))
        self.end_headers()
        self.wfile.write(picture)

    def log_message(self, *_):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = InferenceClient(base_url=f"http://127.0.0.1:{server.server_port}", token="none")
client.image_to_image(picture)
client.image_to_image(picture, prompt="a cat")
print("Content-Type, and whether the body is the file:", seen)
sys.exit(0 if seen == [(None, True), ("application/json", False)] else 1)
PY

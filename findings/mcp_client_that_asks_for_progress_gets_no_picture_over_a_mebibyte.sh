#!/usr/bin/env bash
# mcp 2.3.0, server and client of one SDK, streamable HTTP.
#
# A tool returns a picture of 1.4 MiB. One expects that a client gets it whether or not it also asks to be told of
# progress.
# Seen: without a progress callback the answer is one JSON document of any size, and arrives. With one the same answer is
# a server-sent event, the client takes events up to 1 MiB by default (max_sse_event_size), and the call ends in an
# ExceptionGroup. A picture of 0.4 MiB arrives both ways.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "mcp==2.3.0" "pillow==13.0.0" "uvicorn==0.54.0"
timeout 120 "$work/venv/bin/python" - <<'PY'
import asyncio
import io
import logging
import os
import socket
import sys
import threading

import uvicorn
from mcp.client.client import Client
from mcp.server.mcpserver import Context, Image, MCPServer
from PIL import Image as Pictures

logging.disable(logging.CRITICAL)
server = MCPServer("pictures")


@server.tool()
async def draw(side: int, context: Context) -> Image:
    """Noise of side x side pixels: three bytes a pixel as a file."""
    await context.report_progress(1, 2)
    file = io.BytesIO()
    Pictures.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(file, "PNG")
    return Image(data=file.getvalue(), format="png")


async def told(*_):
    pass


async def arrives(url, side, callback):
    try:
        async with Client(url) as client:
            result = await client.call_tool("draw", {"side": side}, progress_callback=callback)
    except ExceptionGroup:
        return False
    return result.content[0].type == "image"


async def main(url):
    return [await arrives(url, side, callback) for side in (370, 700) for callback in (None, told)]


listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen()
web = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="critical"))
threading.Thread(target=web.run, kwargs={"sockets": [listening]}, daemon=True).start()
seen = asyncio.run(main(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"))
print("arrives (small, small with progress, large, large with progress):", seen)
sys.exit(0 if seen == [True, True, True, False] else 1)
PY

"""Clients that ask and do not read."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.server.running import GENERATIONS, Server

LARGE = {"size": "2048x2048", "output_format": "jpeg", "output_compression": 100, "response_format": "b64_json"}
"""About 6 MB a picture: more than the kernel takes off the server's hands."""


def connect(server: Server) -> socket.socket:
    """A connection that takes a few kilobytes and then no more, until it is read."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    return connection


def ask(server: Server, *headers: str, **fields: Any) -> socket.socket:
    """Sends a request for images; its answer is not read."""
    body = json.dumps({"prompt": "a cat", **fields}).encode()
    head = [f"POST {GENERATIONS} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    connection = connect(server)
    connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    return connection


def get(server: Server, path: str) -> socket.socket:
    """Sends a GET; its answer is not read."""
    connection = connect(server)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return connection

"""A Hugging Face Hub on loopback that serves folders as repositories, or refuses them as the real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StubHub:
    """repositories: id -> folder. refusals: id -> (status, X-Error-Code) for its files.

    fetched: paths of GETs. ranges: the Range headers of those that had one.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve_hub(hub: StubHub) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0].removeprefix("/api/models")
            owner, name, *rest = path.strip("/").split("/")
            repo_id = f"{owner}/{name}"
            if repo_id in hub.repositories and not self.path.startswith("/api/"):
                self._file(repo_id, "/".join(rest[2:]), body)
            elif repo_id in hub.repositories:
                self._json(_tree(hub.repositories[repo_id]) if rest[:1] == ["tree"] else _info(hub, repo_id))
            else:
                self._send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

        def _file(self, repo_id: str, name: str, body: bool) -> None:
            if repo_id in hub.refusals:
                status, code = hub.refusals[repo_id]
                self._send(status, b"", {"X-Error-Code": code} if code else {})
                return
            path = hub.repositories[repo_id] / name
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            if body:
                hub.fetched.append(name)
            content = path.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            if body and (asked := self.headers.get("Range")):
                hub.ranges.append(asked)
                first = int(asked.removeprefix("bytes=").removesuffix("-"))
                span = f"bytes {first}-{len(content) - 1}/{len(content)}"
                self._send(206, content[first:], {**headers, "Content-Range": span})
                return
            self._send(200, content, headers, body)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _info(hub: StubHub, repo_id: str) -> dict[str, object]:
    files = [{"rfilename": entry["path"]} for entry in _tree(hub.repositories[repo_id])]
    return {"id": repo_id, "sha": COMMIT, "siblings": files, "gated": False, "private": False, "tags": []}


def _tree(folder: Path) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": "0" * 40}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]

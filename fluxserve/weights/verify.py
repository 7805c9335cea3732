"""Whether fetched files are what the Hub says they are, each checked once. Knows no Hub and no formats.

A manifest remembers size and time of change of every file that was found right, so that 17 GB are not read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from fluxserve.errors import CheckpointError, SourceError
from fluxserve.weights.json_file import read_json

READ_BYTES = 2**24
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Manifest:
    """Files found right so far, in a JSON file: path -> [sha256, size, time of change in ns]."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def require(self, path: Path, sha256: str, read: Callable[[int], None]) -> None:
        """Checks a file, unless it has been since it last changed. read: called with the bytes read so far.

        Raises:
            SourceError: it is something else; it has been deleted, so that fetching begins anew.
        """
        real = path.resolve()
        state = real.stat()
        mark = [sha256, state.st_size, state.st_mtime_ns]
        if self._known.get(str(real)) == mark:
            return
        found = hash_of(real, read)
        if found != sha256:
            real.unlink()
            raise SourceError(
                f"{path.name}: is damaged or not what its publisher put there.\n"
                f"  Its SHA-256 is {found},\n  expected {sha256}.\n"
                "  It has been deleted; run the same command again to fetch it anew."
            )
        self._known[str(real)] = mark
        self._write()

    def _write(self) -> None:
        """Whole or not at all."""
        scratch = self._path.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(self._known, indent=2) + "\n", encoding="utf-8")
        scratch.replace(self._path)


def hash_of(path: Path, read: Callable[[int], None]) -> str:
    """The SHA-256 of a file, in hexadecimal. read: called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            done += len(piece)
            read(done)
    return digest.hexdigest()


def told_hash(path: Path) -> str | None:
    """What the Hub says of a large file: its cache keeps it under its SHA-256. None for small ones."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _read(path: Path) -> dict[str, object]:
    """A manifest that is missing or spoilt remembers nothing."""
    try:
        return read_json(path) if path.is_file() else {}
    except CheckpointError:
        return {}

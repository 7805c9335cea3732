"""Whether files are what their publisher says they are, each checked once.

The SHA-256 of a file is known if it lies in the Hub's cache, which keeps large files under it, or is listed in a file
`SHA256SUMS`, as sha256sum writes it, in the same folder or the one above. A manifest remembers size and time of change
of every file that was found right, so that 34 GB are not read again at the next start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fluxserve.config import Verify
from fluxserve.errors import CheckpointError
from fluxserve.weights.files.json_file import read_json
from fluxserve.weights.hub.fetch import ByteProgress, manifest_path

log = logging.getLogger(__name__)

READ_BYTES = 2**24
SUMS = "SHA256SUMS"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUMS_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def check_files(paths: Sequence[Path], verify: Verify, progress: ByteProgress) -> None:
    """Reads and checks the files whose SHA-256 is known. verify: which of them; see `PipelineConfig`.

    Raises:
        CheckpointError: one is something else, or cannot be read; names it.
    """
    if verify == "off":
        return
    manifest = Manifest(manifest_path())
    checked = [_check(path, manifest, verify == "always", progress) for path in paths]
    log.info("SHA-256 known, and right, for %d of %d files", sum(checked), len(checked))


class Manifest:
    """Files found right so far, in a JSON file: path -> [sha256, size, time of change in ns]."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)

    def differs(self, path: Path, sha256: str, read: Callable[[int], None], *, again: bool = False) -> str | None:
        """None if the file has this SHA-256, else the one it has.

        Not read if it has not changed since it was found right, unless `again`. read: called with the bytes read so
        far.
        """
        real = path.resolve()
        state = real.stat()
        mark = [sha256, state.st_size, state.st_mtime_ns]
        if not again and self._known.get(str(real)) == mark:
            return None
        found = hash_of(real, read)
        if found == sha256:
            self._known[str(real)] = mark
        else:
            self._known.pop(str(real), None)
        self._write()
        return None if found == sha256 else found

    def _write(self) -> None:
        """Whole or not at all. A cache that cannot be written is no reason not to go on."""
        scratch = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(self._known, indent=2) + "\n", encoding="utf-8")
            scratch.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written, so files will be checked again next time: %s", self._path, error)


def damage(path: Path, found: str, expected: str) -> str:
    """What is wrong with a file, in three lines."""
    return f"{path}: is damaged or not what its publisher put there.\n  Its SHA-256 is {found},\n  expected {expected}."


def hash_of(path: Path, read: Callable[[int], None]) -> str:
    """The SHA-256 of a file, in hexadecimal. read: called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
            done += len(piece)
            read(done)
    return digest.hexdigest()


def cached_hash(path: Path) -> str | None:
    """What the Hub says of a large file: its cache keeps it under its SHA-256. None for small ones."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def listed_hash(path: Path) -> str | None:
    """What a SHA256SUMS in the file's folder, or the one above, says of it. Lines of another form are passed over."""
    for folder in path.parents[:2]:
        if (folder / SUMS).is_file():
            lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
            for line in filter(None, map(_SUMS_LINE.fullmatch, lines)):
                if folder / line[2] == path:
                    return line[1].lower()
    return None


def _check(path: Path, manifest: Manifest, again: bool, progress: ByteProgress) -> bool:
    """Whether there was anything to check the file against. Raises: as `check_files`."""
    try:
        expected = cached_hash(path) or listed_hash(path)
        if expected is None:
            return False
        read = partial(_reading, progress, path.name, path.stat().st_size)
        found = manifest.differs(path, expected, read, again=again)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if found is not None:
        raise CheckpointError(
            f"{damage(path, found, expected)}\n"
            "  Fetch it anew (fluxserve pull does that with a model of the Hub); --verify off serves it as it is."
        )
    return True


def _reading(progress: ByteProgress, name: str, total: int, done: int) -> None:
    progress(f"checking {name}", done, total)


def _read(path: Path) -> dict[str, object]:
    """A manifest that is missing or spoilt remembers nothing."""
    try:
        return read_json(path) if path.is_file() else {}
    except CheckpointError:
        return {}

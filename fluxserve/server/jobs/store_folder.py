"""The server's own folder: marked, held by one process, and full of files whose names prove that it wrote them.

Whatever else lies there is somebody's own: never read, served, counted or deleted.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
from collections.abc import Collection, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from fluxserve.errors import ConfigError, InUse

log = logging.getLogger(__name__)

FOLDER = "fluxserve-store"
"""The server's own folder inside the one that it was given."""
MARK = ".fluxserve-store"
"""Marks the folder, holds its key, and is locked by the process that uses it."""
SHORT_BYTES = 12
"""96 bits: of a tag, and of a file's SHA-256 where it stands in a name."""
_TAG_CHARACTERS = SHORT_BYTES * 4 // 3
_TEMPORARY = ".tmp-"
FIRST_LINE = b"The folder of a fluxserve server, which deletes the files that it wrote here.\n"
_PRIVATE = os.O_NOFOLLOW | os.O_CLOEXEC
_LOST = (OSError, ConfigError, InUse)
"""What may become of a folder that is in use."""


class StoreFolder:
    """path: made if missing; 0700, its files 0600. writable: whether the last write succeeded. Methods block.

    Raises:
        InUse: another process holds it.
        ConfigError: it cannot be made or written, or holds what is not the server's; names it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key = b""
        self._held: FileIO | None = None
        self._taking, self._trying = threading.Lock(), threading.Lock()
        self.writable = True
        try:
            self._take()
            self._sweep()
            self._try_write()
        except OSError as error:
            raise ConfigError(f"{path} cannot be used for pictures ({error.strerror}); see --output-dir") from error

    def name(self, stem: str, suffix: str) -> str:
        """A file's name: stem, a tag that only the holder of the folder's key can make, suffix."""
        return f"{stem}{short(hmac.digest(self._key, (stem + suffix).encode(), 'sha256'))}{suffix}"

    def own_files(self, suffixes: Collection[str]) -> list[tuple[str, os.stat_result]]:
        """Names and status of the files that the server wrote, the oldest first."""
        with os.scandir(self._path) as entries:
            found = [
                (entry.name, entry.stat(follow_symlinks=False))
                for entry in entries
                if entry.name.endswith(tuple(suffixes)) and entry.is_file(follow_symlinks=False)
            ]
        return sorted(
            ((name, status) for name, status in found if self._wrote(name)), key=lambda item: item[1].st_mtime
        )

    def open(self, name: str) -> BinaryIO:
        """A file, to be read. Raises OSError, FileNotFoundError where it is gone."""
        return open(os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | _PRIVATE), "rb")

    def scratch(self) -> BinaryIO:
        """A file without a name, gone when it is closed. Raises OSError."""
        self._ensure()
        return tempfile.TemporaryFile(dir=self._path)

    def write(self, name: str, pieces: Iterable[bytes]) -> int:
        """Writes a file whole or not at all; returns its bytes. Raises OSError, after which `writable` is false."""
        try:
            self._ensure()
            return self._write(name, pieces)
        except _LOST as error:
            self.writable = False
            log.warning("%s takes no file: %s", self._path, error)
            raise error if isinstance(error, OSError) else OSError(error.message) from error

    def delete(self, name: str) -> None:
        """Deletes a file that the server wrote, if it can."""
        with suppress(OSError):
            (self._path / name).unlink(missing_ok=True)

    def doubt(self, what: str) -> None:
        """Tells the log of a file that is not as it was written; a write must succeed before the folder is fine."""
        self.writable = False
        log.warning("%s in %s is gone or damaged", what, self._path)

    def check(self) -> bool:
        """Whether it takes files: made anew if somebody removed it, tried if the last write failed."""
        try:
            self._ensure()
            with self._trying:
                if not self.writable:
                    self._try_write()
                    self.writable = True
        except _LOST:
            self.writable = False
        return self.writable

    def close(self) -> None:
        if self._held is not None:
            self._held.close()

    def _wrote(self, name: str) -> bool:
        stem, suffix = os.path.splitext(name)
        return hmac.compare_digest(self.name(stem[:-_TAG_CHARACTERS], suffix).encode(), os.fsencode(name))

    def _take(self) -> None:
        """Makes the folder or goes on with the one of an earlier process, and locks it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self._path.mkdir(mode=0o700)
        self._refuse_foreign()
        mark = FileIO(os.open(self._path / MARK, os.O_RDWR | os.O_CREAT | _PRIVATE, 0o600), "r+")
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._key = self._read_key(mark)
            self._path.chmod(0o700)
        except BlockingIOError:
            mark.close()
            raise InUse(
                f"another fluxserve uses the same picture folder, {self._path}; give each its own --output-dir"
            ) from None
        except BaseException:
            mark.close()
            raise
        self._held = mark

    def _refuse_foreign(self) -> None:
        status = self._path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise self._refusal("is no folder")
        if status.st_uid != os.geteuid():
            raise self._refusal("belongs to another user")
        if not (self._path / MARK).exists() and any(self._path.iterdir()):
            raise self._refusal("holds files that are not the server's")

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(f"{self._path} {what}, where the server keeps pictures; move it, or see --output-dir")

    def _read_key(self, mark: FileIO) -> bytes:
        """The key that stands in the mark, or is written into a new one."""
        content = mark.read()
        if not content:
            key = self._key or secrets.token_bytes(32)
            mark.write(FIRST_LINE + key.hex().encode() + b"\n")
            return key
        match = re.fullmatch(re.escape(FIRST_LINE) + rb"([0-9a-f]{64})\n", content)
        if match is None:
            raise self._refusal(f"holds a {MARK} that is not the server's")
        return bytes.fromhex(match[1].decode())

    def _ensure(self) -> None:
        with self._taking:
            if not self._is_held():
                self.close()
                self._held = None
                self._take()
                log.warning("%s was removed while in use, and is made anew", self._path)

    def _is_held(self) -> bool:
        """Whether the folder at the path is still the one that this process has locked."""
        try:
            return self._held is not None and os.path.samestat(
                os.stat(self._path / MARK), os.fstat(self._held.fileno())
            )
        except OSError:
            return False

    def _sweep(self) -> None:
        """Deletes what an earlier process had half written."""
        for entry in list(self._path.glob(f"{_TEMPORARY}*")):
            if self._wrote(entry.name.removeprefix(_TEMPORARY)):
                entry.unlink()

    def _try_write(self) -> None:
        name = self.name("probe", ".tmp")
        try:
            self._write(name, [bytes(4096)])
        finally:
            self.delete(name)

    def _write(self, name: str, pieces: Iterable[bytes]) -> int:
        temporary = self._path / (_TEMPORARY + name)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PRIVATE, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            os.replace(temporary, self._path / name)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        return size


def short(digest: bytes) -> str:
    """The first 96 bits of a digest as 16 characters of a file's name."""
    return base64.urlsafe_b64encode(digest[:SHORT_BYTES]).decode()

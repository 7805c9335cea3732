"""What bodies that are being received may take together, counted by the bytes that have come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fluxserve.errors import QueueFull
from fluxserve.server.limits.pace import Pace

ALL_BODIES_CAP, CLIENT_CAP = 512 * 2**20, 256 * 2**20
_RETRY_AFTER_S = 5


@dataclass(eq=False)
class _Upload:
    client: str
    patience: asyncio.Timeout
    size: int = 0
    pace: Pace = field(default_factory=lambda: Pace(time.monotonic()))


class UploadBudget:
    """Where a client, or all together, hold more than they may, the slowest of these uploads ends. Sizes: bytes."""

    def __init__(self, total: int = ALL_BODIES_CAP, share: int = CLIENT_CAP) -> None:
        self._total, self._share = total, share
        self._uploads: set[_Upload] = set()

    @asynccontextmanager
    async def receiving(self, client: str) -> AsyncIterator[_Upload]:
        """One upload, for `add`.

        Raises:
            QueueFull: it had to give way.
        """
        try:
            async with asyncio.timeout(None) as patience:
                upload = _Upload(client, patience)
                self._uploads.add(upload)
                try:
                    yield upload
                finally:
                    self._uploads.discard(upload)
        except TimeoutError:
            raise _gave_way() from None

    def add(self, upload: _Upload, size: int) -> None:
        """`size` more bytes have come. Raises QueueFull if this upload has to give way to them."""
        upload.size += size
        upload.pace.add(size, time.monotonic())
        self._keep_within(self._share, upload, [other for other in self._uploads if other.client == upload.client])
        self._keep_within(self._total, upload, list(self._uploads))

    def _keep_within(self, cap: int, upload: _Upload, uploads: Iterable[_Upload]) -> None:
        now = time.monotonic()
        held = sum(other.size for other in uploads)
        for other in sorted((other for other in uploads if other.size), key=lambda other: other.pace.rate(now)):
            if held <= cap:
                return
            held -= other.size
            if other is upload:
                raise _gave_way()
            self._uploads.discard(other)
            other.patience.reschedule(asyncio.get_running_loop().time())


def _gave_way() -> QueueFull:
    return QueueFull("too much is being uploaded, and this was the slowest; try again", retry_after_s=_RETRY_AFTER_S)

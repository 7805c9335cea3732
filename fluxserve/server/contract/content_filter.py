"""The operator's own filter of prompts and pictures, named at start as `module:function`."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from contextlib import suppress

from fluxserve.errors import ConfigError, ContentFilterFailed, InvalidRequest, QueueFull

THREADS, MOST_WAITING, LONGEST_WAIT_S = 4, 64, 30.0
_RETRY_AFTER_S = 10.0

ContentFilter = Callable[[str, bytes | None], str | None]


def load_content_filter(name: str) -> ContentFilter:
    """The function called with (prompt, input picture or None); it returns None, or why the request is refused.

    Raises:
        ConfigError: there is no such function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--content-filter must be module:function, got {name!r}: {error}") from error
    if not callable(function):
        raise ConfigError(f"--content-filter must name a function, got {name!r}")
    return function


class ContentGate:
    """Asks a filter in threads of its own, a few at once: a slow one holds up those it is asked about, nothing else.

    No thread can be ended, so none is waited for at the server's end, and one counts until the filter has returned.
    """

    def __init__(self, content_filter: ContentFilter) -> None:
        self._filter = content_filter
        self._threads = asyncio.Semaphore(THREADS)
        self._waiting = 0

    async def check(self, prompt: str, image: bytes | None) -> None:
        """Returns if the filter has nothing against it. image: a PNG of what the model will read.

        Raises:
            InvalidRequest: `content_policy_violation`, with the filter's reason.
            ContentFilterFailed: the filter raised.
            QueueFull: too many wait for the filter, or this one has waited for too long.
        """
        await self._wait()
        reason = await self._ask(prompt, image)
        if isinstance(reason, BaseException):  # the operator's code may raise anything, and then nothing may pass
            raise ContentFilterFailed(f"the content filter failed ({type(reason).__name__})") from reason
        if reason is not None:
            raise InvalidRequest(reason, param="prompt", code="content_policy_violation")

    async def _wait(self) -> None:
        """Takes one of the threads."""
        if self._waiting >= MOST_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                await self._threads.acquire()
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    def _ask(self, prompt: str, image: bytes | None) -> asyncio.Future[str | BaseException | None]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[str | BaseException | None] = loop.create_future()

        def answer(reason: str | BaseException | None) -> None:
            self._threads.release()
            if not answered.done():
                answered.set_result(reason)

        def ask() -> None:
            reason: str | BaseException | None
            try:
                reason = self._filter(prompt, image)
            except BaseException as error:  # also what would end the thread without an answer
                reason = error
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(answer, reason)

        threading.Thread(target=ask, name="content filter", daemon=True).start()
        return answered


def _busy() -> QueueFull:
    return QueueFull("too many requests wait for the content filter; try again later", retry_after_s=_RETRY_AFTER_S)

"""The operator's own filter of prompts and pictures, named at start as `module:function`."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from contextlib import suppress

from fluxserve.errors import ConfigError, ContentFilterFailed, InvalidRequest
from fluxserve.server.limits.turns import Room, Turns

THREADS, EACH = 16, 4
ROOM = Room(64, 2**30, 30.0, "too many requests wait for the content filter; try again later")

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
    """Asks a filter in threads of its own, a few at once and fewer of one client: a slow one holds up those it is asked
    about, nothing else.

    No thread can be ended, so none is waited for at the server's end, and one counts until the filter has returned.
    """

    def __init__(self, content_filter: ContentFilter) -> None:
        self._filter = content_filter
        self._turns = Turns(range(THREADS), EACH, ROOM)

    async def check(self, client: str, prompt: str, image: bytes | None) -> None:
        """Returns if the filter has nothing against it. image: a PNG of what the model will read.

        Raises:
            InvalidRequest: `content_policy_violation`, with the filter's reason.
            ContentFilterFailed: the filter raised.
            QueueFull: too many wait for the filter, or this one has waited for too long.
        """
        thread = await self._turns.take(client)
        reason = await self._ask(prompt, image, lambda: self._turns.give_back(thread, client))
        if isinstance(reason, BaseException):  # the operator's code may raise anything, and then nothing may pass
            raise ContentFilterFailed(f"the content filter failed ({type(reason).__name__})") from reason
        if reason is not None:
            raise InvalidRequest(reason, param="prompt", code="content_policy_violation")

    def _ask(
        self, prompt: str, image: bytes | None, on_end: Callable[[], None]
    ) -> asyncio.Future[str | BaseException | None]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[str | BaseException | None] = loop.create_future()

        def answer(reason: str | BaseException | None) -> None:
            on_end()
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

        try:
            threading.Thread(target=ask, name="content filter", daemon=True).start()
        except RuntimeError as error:  # the system has no thread to give
            answer(error)
        return answered

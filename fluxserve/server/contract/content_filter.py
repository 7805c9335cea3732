"""The operator's own filter of prompts and pictures, named at start as `module:function`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable

from fluxserve.errors import ConfigError, ContentFilterFailed, InvalidRequest

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


async def check_content(content_filter: ContentFilter, prompt: str, image: bytes | None) -> None:
    """Asks the filter, in a thread.

    Raises:
        InvalidRequest: `content_policy_violation`, with the filter's reason.
        ContentFilterFailed: the filter raised.
    """
    try:
        reason = await asyncio.to_thread(content_filter, prompt, image)
    except Exception as error:  # the operator's code may raise anything, and then nothing may pass
        raise ContentFilterFailed(f"the content filter failed ({type(error).__name__})") from error
    if reason is not None:
        raise InvalidRequest(reason, param="prompt", code="content_policy_violation")

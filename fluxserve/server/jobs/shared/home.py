"""Puts the shared store's parts together, and sweeps it now and then."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from fluxserve.errors import StoreUnavailable
from fluxserve.server.jobs.homes import Home
from fluxserve.server.jobs.shared.answers import SharedAnswers
from fluxserve.server.jobs.shared.jobs import SharedJobs
from fluxserve.server.jobs.shared.objects import ObjectStorage
from fluxserve.server.jobs.shared.pictures import SharedPictures

log = logging.getLogger(__name__)

_SWEEPS_A_LIFE = 10
_MOST_OFTEN_S, _LEAST_OFTEN_S = 10.0, 600.0


async def open_shared_home(url: str, ttl_s: float, quota_bytes: int, redirects: bool) -> Home:
    """The store at the URL, swept for as long as the event loop runs and it is not closed.

    Raises:
        ConfigError: it cannot be used; names --store.
    """
    objects = await ObjectStorage.open(url)
    answers = SharedAnswers(objects, ttl_s)
    pictures = SharedPictures(objects, ttl_s, quota_bytes, redirects)
    jobs = SharedJobs(objects, answers, ttl_s)
    pause_s = min(max(ttl_s / _SWEEPS_A_LIFE, _MOST_OFTEN_S), _LEAST_OFTEN_S)
    sweeping = asyncio.ensure_future(_sweep([pictures.sweep, answers.sweep, jobs.sweep, objects.tidy], pause_s))
    return Home(pictures, answers, jobs, sweeping.cancel)


async def _sweep(parts: Sequence[Callable[[], Awaitable[None]]], pause_s: float) -> None:
    """Not all servers at once."""
    while True:
        await asyncio.sleep(pause_s * random.uniform(0.5, 1))
        try:
            for sweep in parts:
                await sweep()
        except StoreUnavailable:
            log.warning("the shared store could not be swept; it will be tried again")

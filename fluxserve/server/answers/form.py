"""How a door writes what it answers: whole, and as a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response

from fluxserve.server.answers.image_words import ImageWords
from fluxserve.server.answers.images import image_answer
from fluxserve.server.answers.job_events import StreamWords
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.jobs.outcome import Outcome


@dataclass(frozen=True)
class Form:
    """Those of the image routes, unless a door has its own.

    whole: of an outcome, for a request, with what URLs begin with. words: for one stream of a request, of a model.
    """

    whole: Callable[[Outcome, ResolvedRequest, str], Response] = image_answer
    words: Callable[[ResolvedRequest, str], StreamWords] = lambda resolved, model: ImageWords(resolved)


OF_IMAGES = Form()

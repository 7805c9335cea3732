"""The events of the image routes, as OpenAI's clients read them.

Three kinds and no other, as those take any unknown one for a preview.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fluxserve.engine.events import PartialImage
from fluxserve.errors import FluxserveError
from fluxserve.request import GeneratedImage
from fluxserve.server.answers.images import description, timings_body, usage
from fluxserve.server.answers.job_events import Finished
from fluxserve.server.answers.parts import Base64
from fluxserve.server.answers.sse import Event
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.http.errors import error_body


@dataclass(frozen=True)
class ImageWords:
    """Of the image routes: three kinds of events and no other, as OpenAI's clients take any unknown for a preview."""

    resolved: ResolvedRequest

    def opened(self) -> Iterable[Event]:
        return ()

    def begun(self, index: int) -> Iterable[Event]:
        return ()

    def closed(self) -> Iterable[Event]:
        return ()

    def failed(self, error: FluxserveError) -> Iterable[Event]:
        return ((b"event: error\ndata: %s\n\n" % json.dumps({"type": "error", **error_body(error)}).encode(),),)

    def partial(self, partial: PartialImage) -> Iterable[Event]:
        about = {"partial_image_index": partial.partial_index, "image_index": partial.index}
        return (self._picture("partial_image", partial.image, about),)

    def completed(self, finished: Finished) -> Iterable[Event]:
        about = {
            "image_index": finished.image.index,
            "seed": finished.image.seed,
            "usage": usage(self.resolved, finished.text_tokens, images=1),
            "timings": timings_body(finished.timings),
            **({"warnings": finished.warnings} if finished.warnings else {}),
        }
        return (self._picture("completed", finished.image, about),)

    def _picture(self, name: str, image: GeneratedImage, about: dict[str, Any]) -> Event:
        kind = f"{self.resolved.event_kind}.{name}"
        rest = json.dumps(
            {"type": kind, "created_at": int(time.time()), **description(self.resolved), **about}
        ).encode()
        head = b'event: %s\ndata: {"b64_json":"' % kind.encode()
        return head, Base64(image.data), b'",' + rest[1:] + b"\n\n"

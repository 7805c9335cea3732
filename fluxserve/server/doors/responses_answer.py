"""The answer of POST /v1/responses, whole and as events: a `Response` whose output are image_generation_calls.

Follows openai-python 3.57 `types/responses/`: `response.py`, `response_output_item.py`, `response_stream_event.py`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.responses import Response

from fluxserve.engine.events import PartialImage
from fluxserve.errors import FluxserveError
from fluxserve.request import GeneratedImage
from fluxserve.server.answers.images import description
from fluxserve.server.answers.job_events import Finished
from fluxserve.server.answers.parts import Base64, Part, PartsAnswer
from fluxserve.server.answers.sse import Event
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.jobs.outcome import Outcome

TOOL = "image_generation"
_CALL = f"{TOOL}_call"
_QUIET = dict.fromkeys(("error", "incomplete_details", "instructions", "temperature", "top_p"))
_REST = {"tool_choice": "auto", "tools": [{"type": TOOL}], "parallel_tool_calls": False, "metadata": {}}


def whole_answer(outcome: Outcome, resolved: ResolvedRequest, base_url: str) -> Response:
    """All calls, completed."""
    written = _Document(resolved, outcome.model, outcome.created)
    calls = [written.call(image) for image in outcome.result.images]
    return PartsAnswer(written.response("completed", calls), "application/json", outcome)


class ResponseWords:
    """Events of one response: opened, a call begun, previewed and completed for each picture, closed."""

    def __init__(self, resolved: ResolvedRequest, model: str) -> None:
        self._document = _Document(resolved, model, int(time.time()))
        self._calls: dict[int, list[Part]] = {}
        self._begun: set[int] = set()
        self._number = 0

    def opened(self) -> Iterator[Event]:
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", "response", self._document.response("in_progress", ()))
        for index, id in enumerate(self._document.ids):
            begun = _json({"id": id, "type": _CALL, "status": "in_progress", "result": None})
            yield self._event("response.output_item.added", "item", [begun], output_index=index)
            yield self._of_call("in_progress", index)

    def begun(self, index: int) -> Iterator[Event]:
        if index not in self._begun:
            self._begun.add(index)
            yield self._of_call("generating", index)

    def partial(self, partial: PartialImage) -> Iterator[Event]:
        about = {"partial_image_index": partial.partial_index, **description(self._document.resolved)}
        data = _text(partial.image)
        yield self._of_call("partial_image", partial.index, "partial_image_b64", data, **about)

    def completed(self, finished: Finished) -> Iterator[Event]:
        index = finished.image.index
        yield from self.begun(index)
        call = self._calls[index] = self._document.call(finished.image, finished.warnings)
        yield self._of_call("completed", index)
        yield self._event("response.output_item.done", "item", call, output_index=index)

    def closed(self) -> Iterator[Event]:
        calls = [self._calls[index] for index in sorted(self._calls)]
        yield self._event("response.completed", "response", self._document.response("completed", calls))

    def failed(self, error: FluxserveError) -> Iterator[Event]:
        """The client's types know few codes, so ours stands in the message."""
        told = {"code": "server_error", "message": f"{error} ({error.code})"}
        calls = [self._calls[index] for index in sorted(self._calls)]
        yield self._event("response.failed", "response", self._document.response("failed", calls, error=told))

    def _of_call(self, name: str, index: int, field: str = "", value: Sequence[Part] = (), **about: Any) -> Event:
        about |= {"item_id": self._document.ids[index], "output_index": index}
        return self._event(f"response.{_CALL}.{name}", field, value, **about)

    def _event(self, kind: str, field: str, value: Sequence[Part], **about: Any) -> Event:
        numbered = {"type": kind, "sequence_number": self._number, **about}
        self._number += 1
        data = _with(numbered, field, value) if field else [_json(numbered)]
        return [f"event: {kind}\ndata: ".encode(), *data, b"\n\n"]


class _Document:
    """A `Response` in the making, with the ids of its calls."""

    def __init__(self, resolved: ResolvedRequest, model: str, created: int) -> None:
        self.resolved, self._model, self._created = resolved, model, created
        self._id = f"resp_{secrets.token_hex(16)}"
        self.ids = [f"ig_{secrets.token_hex(16)}" for _ in resolved.request.seeds]

    def call(self, image: GeneratedImage, warnings: Iterable[str] = ()) -> list[Part]:
        """A finished image_generation_call."""
        about = {"id": self.ids[image.index], "type": _CALL, "status": "completed", "seed": image.seed}
        told = {"warnings": list(warnings)} if warnings else {}
        return _with({**about, **told, **description(self.resolved)}, "result", _text(image))

    def response(self, status: str, calls: Sequence[Sequence[Part]], **about: Any) -> list[Part]:
        """With these calls as its output."""
        known = {"id": self._id, "object": "response", "created_at": self._created, "status": status}
        output: list[Part] = [b"["]
        for at, call in enumerate(calls):
            output += [*([b","] if at else []), *call]
        return _with({**known, "model": self._model, **_QUIET, **_REST, **about}, "output", [*output, b"]"])


def _with(fields: dict[str, Any], name: str, value: Sequence[Part]) -> list[Part]:
    """The object of these fields and one more, whose value is written already."""
    return [_json(fields)[:-1], f',"{name}":'.encode(), *value, b"}"]


def _text(image: GeneratedImage) -> list[Part]:
    return [b'"', Base64(image.data), b'"']


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

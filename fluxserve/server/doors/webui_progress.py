"""Which pictures are being drawn for whom, as WebUI's clients ask for progress and interrupt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fluxserve.engine import Job
from fluxserve.server.http.context import RequestContext


class Underway:
    """The requests of this door that are open."""

    def __init__(self) -> None:
        self._open: list[RequestContext] = []

    @contextmanager
    def noted(self, context: RequestContext) -> Iterator[None]:
        """Known as long as it is answered."""
        self._open.append(context)
        try:
            yield
        finally:
            self._open.remove(context)

    def jobs(self, client: str) -> list[Job]:
        """The client's that have not ended, the oldest first."""
        jobs = [context.job for context in self._open if context.client == client]
        return [job for job in jobs if job is not None and not job.done]


def state_of(jobs: Sequence[Job], eta_s: Callable[[Job], float | None]) -> dict[str, Any]:
    """`ProgressResponse`: of the oldest. progress: 0 to 1. eta_relative: seconds."""
    done, steps = jobs[0].progress.steps_done() if jobs else (0, 0)
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": f"job {jobs[0].id}" if jobs else "",
        "job_count": len(jobs),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": done,
        "sampling_steps": steps,
    }
    eta = (eta_s(jobs[0]) or 0.0) if jobs else 0.0
    part = done / steps if steps else 0.0
    return {"progress": part, "eta_relative": eta, "state": state, "current_image": None, "textinfo": None}

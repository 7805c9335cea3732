"""Which pictures are being drawn for whom, as WebUI's clients ask for progress and interrupt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fluxserve.engine import Engine, Job
from fluxserve.server.http.context import RequestContext


class Underway:
    """The requests of this door that are open."""

    def __init__(self) -> None:
        self._open: list[tuple[RequestContext, Engine]] = []

    @contextmanager
    def noted(self, context: RequestContext, model: Engine) -> Iterator[None]:
        """Known as long as it is answered."""
        entry = (context, model)
        self._open.append(entry)
        try:
            yield
        finally:
            self._open.remove(entry)

    def jobs(self, client: str) -> list[tuple[Job, Engine]]:
        """The client's that have not ended and their models, the oldest first."""
        jobs = [(context.job, model) for context, model in self._open if context.client == client]
        return [(job, model) for job, model in jobs if job is not None and not job.done]


def state_of(jobs: Sequence[tuple[Job, Engine]]) -> dict[str, Any]:
    """`ProgressResponse`: of the oldest. progress: 0 to 1. eta_relative: seconds."""
    done, steps = jobs[0][0].progress.steps_done() if jobs else (0, 0)
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": f"job {jobs[0][0].id}" if jobs else "",
        "job_count": len(jobs),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": done,
        "sampling_steps": steps,
    }
    eta = next((model.eta_s(job) or 0.0 for job, model in jobs), 0.0)
    part = done / steps if steps else 0.0
    return {"progress": part, "eta_relative": eta, "state": state, "current_image": None, "textinfo": None}

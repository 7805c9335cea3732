"""The front's half of generation: jobs, queue, admission, and the supervisor of the worker process."""

from fluxserve.engine.engine import Engine, State
from fluxserve.engine.job import CompletedImage, Job, JobEvent, JobResult, PartialImage
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.restarts import Fatal
from fluxserve.engine.supervisor import LoadingProgress

__all__ = [
    "CompletedImage",
    "Engine",
    "Fatal",
    "Job",
    "JobEvent",
    "JobResult",
    "LoadingProgress",
    "Metrics",
    "PartialImage",
    "State",
]

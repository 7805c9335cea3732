"""The torch-free dispatcher: jobs, queue, admission and the supervisor of the worker, which alone has the model."""

from fluxserve.engine.engine import Engine, State
from fluxserve.engine.events import Changes, CompletedImage, JobEvent, JobResult, PartialImage
from fluxserve.engine.job import Job
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.restarts import Fatal
from fluxserve.engine.supervisor import LoadingProgress

__all__ = [
    "Changes",
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

"""What an exception means for its job and for the process. Knows torch's errors by name, to load without torch."""

from __future__ import annotations

import logging
import traceback

from fluxserve import wire
from fluxserve.errors import FluxserveError, GenerationFailed, InsufficientMemory, InvalidRequest

log = logging.getLogger(__name__)

_OUT_OF_MEMORY = frozenset({"OutOfMemoryError", "MemoryError"})
_DEVICE_ERRORS = ("CUDA error", "device-side assert", "illegal memory access", "HIP error")


def failed(job_id: int, error: Exception) -> wire.Failed:
    """The message that tells the front. The text of an unforeseen exception stays here: it may quote the prompt."""
    if out_of_memory(error):
        error = InsufficientMemory("the device has too little free memory for this request; ask for a smaller size")
    if isinstance(error, InvalidRequest):
        return wire.Failed(job_id, error.code, error.message, error.param)
    if isinstance(error, GenerationFailed):
        return wire.Failed(job_id, error.code, error.message, None)
    return wire.Failed(job_id, FluxserveError.code, f"the worker failed on this request: {type(error).__name__}", None)


def out_of_memory(error: Exception) -> bool:
    """Whether the device, or the host, had no room."""
    return bool(_names(error) & _OUT_OF_MEMORY)


def device_lost(error: Exception) -> bool:
    """Whether every later call on the device would fail too (a sticky CUDA error)."""
    if "AcceleratorError" in _names(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_ERRORS)


def _names(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def log_failure(job_id: int, error: Exception) -> None:
    """A foreseen failure in one line; any other with where it happened, but without its text."""
    if isinstance(error, FluxserveError):
        log.warning("job %d failed: %s", job_id, error.code)
        return
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("job %d failed with %s\n%s", job_id, type(error).__name__, where)

"""The exceptions that fluxserve raises, and the code each is known by. Knows nothing of HTTP statuses or torch.

FluxserveError
├ InvalidRequest           the client's request is wrong; names the parameter
├ ConfigError              an option, a variable or a directory is wrong
│ └ DeviceError            the device or dtype asked for is not there, or too small
├ CheckpointError          weight files are damaged, incomplete or of a kind that is refused
├ SourceError              a Hub repository is gated, missing or unreachable
├ InUse                    another process has the address or the picture folder
├ StorageFull              pictures cannot be stored
├ ContentFilterFailed      the operator's content filter raised an exception
├ Refused                  the server does not take the request now
│ ├ QueueFull  ├ WaitExceedsTimeout  ├ ModelLoading  ├ ShuttingDown
│ ├ RateLimitExceeded  ├ StoreUnavailable  ├ WorkerUnavailable  └ ReplicaLost
└ GenerationFailed         an accepted request could not be finished
  ├ WorkerCrashed  ├ NonFiniteOutput  ├ InsufficientMemory  ├ DeadlineExceeded
  └ Cancelled
"""

from __future__ import annotations


class FluxserveError(Exception):
    """Base of all. `code` is the word clients and logs know the error by."""

    code = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(FluxserveError):
    """The request is wrong. `param` names the field, `code` is one of OpenAI's or ours."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ConfigError(FluxserveError):
    code = "config_error"


class DeviceError(ConfigError):
    code = "device_error"


class CheckpointError(FluxserveError):
    code = "checkpoint_error"


class SourceError(FluxserveError):
    code = "source_error"


class InUse(FluxserveError):
    code = "in_use"


class StorageFull(FluxserveError):
    code = "storage_full"


class ContentFilterFailed(FluxserveError):
    code = "content_filter_failed"


class Refused(FluxserveError):
    """Not accepted. `retry_after_s` is the predicted time until a retry would be (None: do not retry)."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Refused):
    code = "queue_full"


class WaitExceedsTimeout(Refused):
    code = "wait_exceeds_timeout"


class ModelLoading(Refused):
    code = "model_loading"


class ShuttingDown(Refused):
    code = "shutting_down"


class RateLimitExceeded(Refused):
    code = "rate_limit_exceeded"


class StoreUnavailable(Refused):
    code = "store_unavailable"


class WorkerUnavailable(Refused):
    code = "worker_unavailable"


class ReplicaLost(Refused):
    """Of a cluster: what had the request is gone, or nothing is there yet that could take it."""

    code = "replica_lost"


class GenerationFailed(FluxserveError):
    """An accepted request ended without its pictures."""


class WorkerCrashed(GenerationFailed):
    code = "worker_crashed"


class NonFiniteOutput(GenerationFailed):
    code = "non_finite_output"


class InsufficientMemory(GenerationFailed):
    code = "insufficient_memory"


class DeadlineExceeded(GenerationFailed):
    code = "deadline_exceeded"


class Cancelled(GenerationFailed):
    code = "cancelled"

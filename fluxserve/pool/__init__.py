"""The models of one server: which of them is loaded where, and which gives way. Knows nothing of HTTP and torch."""

from fluxserve.pool.models import LoadTimes, ModelPool

__all__ = ["LoadTimes", "ModelPool"]

"""The real worker with one more row in the registry: `python -m tests.toy_worker`."""

from __future__ import annotations

from fluxserve.models import registry
from fluxserve.worker.__main__ import describe, load
from fluxserve.worker.process import serve

ROW = registry.Row("tests.toy_family:TOY", "tests.toy_family:VARIANTS")

if __name__ == "__main__":
    registry.ROWS["toy"] = ROW
    serve(load, describe)

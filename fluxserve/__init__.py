"""fluxserve: turns prompts into pictures with FLUX.1 and speaks OpenAI's image API.

`import fluxserve` alone loads neither the web half nor the torch half; `fluxserve.FluxPipeline` loads the latter.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxserve.pipeline.pipeline import FluxPipeline

__all__ = ["FluxPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "FluxPipeline":
        from fluxserve.pipeline.pipeline import FluxPipeline

        return FluxPipeline
    if name == "__version__":
        return version("fluxserve")
    raise AttributeError(f"module 'fluxserve' has no attribute {name!r}")

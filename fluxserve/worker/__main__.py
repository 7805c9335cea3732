"""`python -m fluxserve.worker`: the worker process with the real pipeline. Started by the engine, not by people."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fluxserve.config import PipelineConfig
from fluxserve.request import ModelCard
from fluxserve.worker.pipeline_protocol import ProgressCallback
from fluxserve.worker.process import serve

if TYPE_CHECKING:
    from fluxserve.pipeline.pipeline import FluxPipeline


def load(config: PipelineConfig, progress: ProgressCallback, shared: int | None) -> FluxPipeline:
    """Imports torch only now: it takes seconds, in which the front already sees a worker."""
    from fluxserve.pipeline.pipeline import FluxPipeline
    from fluxserve.pipeline.threads import settle_threads
    from fluxserve.placement.shared import SharedMemory

    pipeline = FluxPipeline.load(config, progress, None if shared is None else SharedMemory(shared))
    settle_threads(pipeline)
    return pipeline


def describe(config: PipelineConfig) -> tuple[ModelCard, int]:
    """Of what is here: nothing is fetched."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    from fluxserve.pipeline.pipeline import FluxPipeline

    return FluxPipeline.describe(config)


if __name__ == "__main__":
    serve(load, describe)

"""How many threads a model computes with on a CPU: a small one loses more by waiting for them than they save.

By arithmetic alone, not by the clock: another number of threads changes a picture's last bits, and a worker that comes
later is to draw the same.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from fluxserve.placement.rates import attention_flops, linear_flops

if TYPE_CHECKING:
    from fluxserve.pipeline.pipeline import FluxPipeline

log = logging.getLogger(__name__)

OPERATIONS_A_THREAD = 1e10
"""Floating-point operations of a step at the model's own size for which a further thread pays: about 0.2 s of a core,
beside which some hundred barriers are little. The demo's step has a tenth of that, FLUX.1's thousands of times as much.
"""


def settle_threads(pipeline: FluxPipeline) -> None:
    """Sets the number of threads of this process, on a CPU. OMP_NUM_THREADS, where it is set, is left as it is."""
    if pipeline.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    costs, work = pipeline.blueprint.checkpoint.architecture.arithmetic, pipeline.plan.work
    most = torch.get_num_threads()
    threads = threads_that_pay(linear_flops(costs, work) + attention_flops(costs, work), most)
    torch.set_num_threads(threads)
    log.info("%d of %d threads", threads, most)


def threads_that_pay(operations: float, most: int) -> int:
    """operations: floating-point, of one step. most: as many as there are cores."""
    return max(1, min(most, int(operations / OPERATIONS_A_THREAD)))

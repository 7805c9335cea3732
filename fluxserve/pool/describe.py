"""What a model would be, told by a process that reads no weights and ends then."""

from __future__ import annotations

import logging

from fluxserve import wire
from fluxserve.config import PipelineConfig
from fluxserve.engine.restarts import Fatal
from fluxserve.engine.worker_process import WorkerProcess
from fluxserve.errors import SourceError
from fluxserve.exit_codes import EXIT_CODES

log = logging.getLogger(__name__)

LAST_WORDS_S = 5.0


async def describe(module: str, config: PipelineConfig) -> wire.Described | Fatal | None:
    """What the worker module says of the model, or why it can never serve it; None: its files are not here yet."""
    try:
        process = await WorkerProcess.spawn(module)
    except OSError as error:
        log.warning("%s could not be described: %s", config.model, error)
        return None
    answer: wire.Described | Fatal | None = None
    try:
        process.send(wire.Describe(config))
        async for message in process.messages():
            if isinstance(message, wire.Described):
                answer = message
            elif isinstance(message, wire.Unusable) and message.exit_code != EXIT_CODES[SourceError]:
                answer = Fatal(message.exit_code, message.message)
    finally:
        await process.end(LAST_WORDS_S)
    return answer

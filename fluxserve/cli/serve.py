"""`fluxserve serve`: from its options to a running server, which is `front.py`'s."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fluxserve.cli import options
from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.cli.settings import FILE, read_settings

SettingsFile = Annotated[
    Path | None, typer.Option("--config", help=f"The settings file; {FILE} in the working folder if it is there.")
]


@options.spread
def serve(*, models: options.ModelsArgument = None, flags: options.ServeFlags, config: SettingsFile = None) -> None:
    """Answer OpenAI's image API over HTTP."""
    serve_with(models or (), flags, config)


def serve_with(
    models: Sequence[str], flags: options.Flags, file: Path | None, worker_module: str = "fluxserve.worker"
) -> None:
    """Serves until a signal or a failure, then ends this process. worker_module: what the worker process runs."""
    from fluxserve.cli.front import run_front

    with failures_to_exit_codes():
        configs = read_settings(flags, file, models)
        if configs.server.content_filter:
            sys.path.insert(0, os.getcwd())
        run_front(configs.models, configs.engine, configs.server, worker_module)

"""A pipeline for commands that draw themselves, with a bar while files are fetched and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from fluxserve.config import PipelineConfig

if TYPE_CHECKING:
    from fluxserve.pipeline.pipeline import FluxPipeline

FREE_LICENCE = "Apache-2.0"

console = Console(stderr=True)


@contextmanager
def byte_bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar, while the context lasts, for whoever reports (stage, bytes done, bytes in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total or None)

        yield progress


def load_with_progress(config: PipelineConfig) -> FluxPipeline:
    """Loads what `config` names, and tells of a licence or a notice that people should know of.

    Raises:
        FluxserveError: as `FluxPipeline.load`.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as a worker has it; read when torch first takes memory
    with console.status(f"loading {config.model}"):
        from fluxserve.pipeline.pipeline import FluxPipeline

    with byte_bar(config.model) as progress:
        pipeline = FluxPipeline.load(config, progress)
    card = pipeline.card
    if card.notice is not None:
        console.print(f"{card.id}: {card.description}", style="yellow", markup=False)
    if not card.licence.startswith(FREE_LICENCE):
        console.print(f"{card.id} is under the {card.licence}", highlight=False, markup=False)
    return pipeline

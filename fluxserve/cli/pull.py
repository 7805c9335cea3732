"""`fluxserve pull`: fetches a model ahead of its use and checks it. Imports huggingface_hub only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.cli.loading import byte_bar, console
from fluxserve.models import registry

if TYPE_CHECKING:
    from fluxserve.weights.hub.pull import DownloadPlan


def pull(
    model: Annotated[str, typer.Argument(help="klein, zimage-turbo, schnell, kontext, a Hub id, or OWNER/NAME/FILE.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files, sizes and free disk; fetch nothing.")] = False,
) -> None:
    """Fetch a model, check it, and leave it ready for serve. What is there already is not fetched again."""
    with failures_to_exit_codes():
        from fluxserve.weights.hub.pull import download, plan_download

        plan = plan_download(model)
        if licence := registry.licence_of(plan.repo_id):
            console.print(f"{plan.repo_id}: {licence}", highlight=False, markup=False)
        if plan.composed:
            console.print(
                f"{plan.repo_id} is gated, and no token here may read it: "
                "taking its float8 weights from copies that need no account.",
                highlight=False,
            )
        if dry_run:
            Console().print(_listing(plan), highlight=False)
            return
        with byte_bar(model) as progress:
            place = download(plan, progress)
    console.print(f"{model} is here and checked: {place}", highlight=False, soft_wrap=True)


def _listing(plan: DownloadPlan) -> Table:
    """The files with their sizes, then what is missing and how much disk there is."""
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("bytes", justify="right")
    table.add_column("here")
    for file in plan.files:
        table.add_row(f"{file.repo_id}/{file.filename}", f"{file.nbytes:,}", "yes" if file.cached else "no")
    table.add_row("to be fetched", f"{plan.missing_bytes:,}")
    table.add_row("free disk", f"{plan.free_bytes:,}", "enough" if plan.fits else "too little")
    return table

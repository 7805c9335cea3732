"""The command line: its commands. The torch half is imported by the commands that need it."""

from __future__ import annotations

import typer

from fluxserve.cli.bench import bench
from fluxserve.cli.doctor import doctor
from fluxserve.cli.generate import generate
from fluxserve.cli.mcp import mcp
from fluxserve.cli.models import models
from fluxserve.cli.pull import pull
from fluxserve.cli.remote import load, ps, unload
from fluxserve.cli.serve import serve

app = typer.Typer(
    help="Text-to-image models behind OpenAI's image API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, ps, load, unload, generate, pull, models, doctor, bench, mcp):
    app.command()(command)

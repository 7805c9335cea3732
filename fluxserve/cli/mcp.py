"""`fluxserve mcp`: the tools for agents over stdio, as a client of a server that runs."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from typing import Annotated

import typer

from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.errors import ConfigError


def mcp(
    url: Annotated[
        str, typer.Option(help="Where the server is.", envvar="FLUXSERVE_URL", show_envvar=True)
    ] = "http://127.0.0.1:1234",
) -> None:
    """Give agents tools that draw and edit (MCP over stdio); the key is FLUXSERVE_API_KEY."""
    with failures_to_exit_codes():
        from fluxserve.server.doors.mcp import NEEDED

        if find_spec("mcp") is None:
            raise ConfigError(NEEDED)
        from fluxserve.server.doors.mcp_server import over_stdio

        asyncio.run(over_stdio(url, os.environ.get("FLUXSERVE_API_KEY")))

"""`python -m tests.server.serve WORKER [OPTIONS]`: `fluxserve serve` with another worker module."""

from __future__ import annotations

import sys

import typer

from fluxserve.cli import options
from fluxserve.cli.serve import SettingsFile, serve_with


def main() -> None:
    worker = sys.argv.pop(1)

    @options.spread
    def serve(*, models: options.ModelsArgument = None, flags: options.ServeFlags, config: SettingsFile = None) -> None:
        serve_with(models or (), flags, config, worker)

    typer.run(serve)


if __name__ == "__main__":
    main()

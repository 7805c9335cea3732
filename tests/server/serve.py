"""`python -m tests.server.serve WORKER [OPTIONS]`: `fluxserve serve` with another worker module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from fluxserve.cli.serve import serve, serve_with


def main() -> None:
    worker = sys.argv.pop(1)

    def command(config: Path | None, **flags: Any) -> None:
        sys.exit(serve_with(flags, config, worker))

    command.__signature__ = serve.__signature__  # type: ignore[attr-defined]
    typer.run(command)


if __name__ == "__main__":
    main()

"""`fluxserve ps`, `load`, `unload`: what a running server has loaded, and what it is to load. Loads nothing itself."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.errors import WorkerUnavailable

LOOK_S = 0.5
MIB = 2**20

Url = Annotated[str, typer.Option(envvar="FLUXSERVE_URL", help="Where the server is.")]
Key = Annotated[
    str | None, typer.Option(envvar=["FLUXSERVE_ADMIN_KEY", "FLUXSERVE_API_KEY"], help="A key of the server's.")
]
Model = Annotated[str, typer.Argument(help="One of the server's models, by id or name.")]
HERE = "http://127.0.0.1:1234"


def ps(url: Url = HERE, key: Key = None) -> None:
    """List the models of a running server, and which are loaded."""
    table = Table(box=None, pad_edge=False)
    for heading in ("MODEL", "STATE", "WORKERS", "DEVICE", "MEMORY", "LOADS IN", "UNLOADED AFTER"):
        table.add_column(heading, no_wrap=heading == "MODEL")
    with failures_to_exit_codes():
        for model in _ask(url, key, "")["data"]:
            table.add_row(*_row(model))
    Console().print(table, highlight=False, markup=False)


def load(model: Model, url: Url = HERE, key: Key = None) -> None:
    """Have a running server load one of its models; returns when it is loaded."""
    with failures_to_exit_codes():
        _ask(url, key, f"{_quoted(model)}/load", "POST")
        _wait_until(url, key, model, "loaded")


def unload(model: Model, url: Url = HERE, key: Key = None) -> None:
    """Have a running server unload a model; returns when its memory is free."""
    with failures_to_exit_codes():
        _ask(url, key, f"{_quoted(model)}/unload", "POST")
        _wait_until(url, key, model, "unloaded")


def _wait_until(url: str, key: str | None, model: str, wanted: str) -> None:
    """Says each state on its way."""
    told = None
    while told != wanted:
        state = _ask(url, key, _quoted(model))["state"]
        if state != told:
            print(f"{model}: {state}", file=sys.stderr)
        if state == "failed":
            raise WorkerUnavailable(f"{model} could not be loaded; see the server's log")
        told = state
        time.sleep(0 if told == wanted else LOOK_S)


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    placement, idle_s, load_s = model["placement"] or {}, model["idle_timeout_s"], model["load_s"]
    return (
        model["id"],
        model["state"],
        str(model["workers"]),
        placement.get("device", "-"),
        f"{placement['peak_bytes'] / MIB:,.0f} MiB" if placement else "-",
        "-" if load_s is None else f"{load_s:.1f} s",
        "never" if idle_s is None else f"{idle_s:g} s idle",
    )


def _quoted(model: str) -> str:
    return "/" + urllib.parse.quote(model)


def _ask(url: str, key: str | None, path: str, method: str = "GET") -> dict[str, Any]:
    """The answer's object. Raises WorkerUnavailable with what the server says, or why there is none."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/models{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise WorkerUnavailable(_told(error)) from error
    except (OSError, ValueError) as error:
        raise WorkerUnavailable(f"no answer from {url}: {error}") from error


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return str(error)

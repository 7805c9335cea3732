"""The official clients, each version in an environment of its own under .venv-clients/, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-clients"
PYTHON_VERSIONS = ("1.109.1", "2.8.0", "3.54.0", "3.57.0")
NODE_VERSIONS = ("6.49.0", "7.59.0")


def python_with_openai(wanted: str) -> Path:
    """An interpreter that has this version of openai-python; the one that runs the tests, if it has."""
    if version("openai") == wanted:
        return Path(sys.executable)
    home = HOME / f"openai-python-{wanted}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"openai=={wanted}"], check=True)
        (home / "complete").touch()
    return python


def schemathesis() -> Path:
    """The command of that name."""
    home = HOME / "schemathesis"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", "schemathesis==4.32.5"], check=True)
        (home / "complete").touch()
    return home / "bin" / "schemathesis"


def node_modules(wanted: str) -> Path:
    """A folder whose node_modules holds this version of openai-node."""
    home = HOME / f"openai-node-{wanted}"
    if not (home / "complete").exists():
        home.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home)]
        subprocess.run([*install, f"openai@{wanted}"], check=True)
        (home / "complete").touch()
    return home

"""Clients, each version in an environment of its own under .venv-clients/, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-clients"
PYTHON_VERSIONS = ("1.109.1", "2.8.0", "3.54.0", "3.57.0")
NODE_VERSIONS = ("6.49.0", "7.59.0")


def python_with_openai(wanted: str) -> Path:
    """An interpreter that has this version of openai-python; the one that runs the tests, if it has."""
    return Path(sys.executable) if version("openai") == wanted else python_with(f"openai=={wanted}")


def python_with(*packages: str) -> Path:
    """An interpreter that has these packages, each as NAME==VERSION."""
    home = HOME / f"python-{'-'.join(packages)}"
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", *packages]
    _make(home, [sys.executable, "-m", "venv", "--clear", str(home)], install)
    return python


def python_beside(*packages: str) -> Path:
    """An interpreter that has these packages beside all that the one which runs the tests has."""
    home = HOME / f"beside-{'-'.join(packages)}"
    python = home / "bin" / "python"
    own = f"import site; site.addsitedir({str(Path(pytest.__file__).parents[1])!r})"
    write = (
        "import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path('purelib'), 'own.pth').write_text(sys.argv[1])"
    )
    _make(
        home,
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(python), "-c", write, own],
        [str(python), "-m", "pip", "install", "--quiet", *packages],
    )
    return python


def packages_over(*packages: str) -> Path:
    """A folder that holds these packages alone, each as NAME==VERSION, to come first among what is installed."""
    home = HOME / f"over-{'-'.join(packages)}"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(home)]
    _make(home, [*install, *packages])
    return home


def schemathesis() -> Path:
    """The command of that name."""
    return python_with("schemathesis==4.32.5").with_name("schemathesis")


def axe() -> str:
    """axe-core's program, which finds what keeps people out of a page."""
    return (node_modules("axe-core@4.10.3") / "node_modules" / "axe-core" / "axe.min.js").read_text()


def node_modules(*packages: str) -> Path:
    """A folder whose node_modules holds these packages, each as NAME@VERSION."""
    home = HOME / f"node-{'-'.join(packages).replace('/', '_')}"
    _make(home, ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), *packages])
    return home


def _make(home: Path, *commands: list[str]) -> None:
    """Runs the commands that make `home`, once; tests that run beside each other wait for it."""
    HOME.mkdir(exist_ok=True)
    with FileLock(f"{home}.lock"):
        if (home / "complete").exists():
            return
        home.mkdir(exist_ok=True)
        for command in commands:
            subprocess.run(command, check=True)
        (home / "complete").touch()

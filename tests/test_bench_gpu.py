"""The GPU bench runs in all its parts, at tiny sizes on a CPU, with the packages that a GPU machine may have.

Those are older than what is installed here: an oldest transformers, laid over the present environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.environments import packages_over

ROOT = Path(__file__).parents[1]
PARTS = ("parity", "resident", "offload", "klein", "eightbit", "compile")
OLDER = ("transformers==5.17.0", "huggingface_hub==1.33.0")


@pytest.fixture(scope="session")
def older() -> dict[str, str]:
    """An environment of a process in which those packages come first."""
    return os.environ | {"PYTHONPATH": str(packages_over(*OLDER))}


def run(command: list[str], environment: dict[str, str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_every_part_of_the_bench_runs(older: dict[str, str], tmp_path: Path) -> None:
    bench = [sys.executable, "scripts/bench_gpu.py", "--size", "tiny", "--device", "cpu", "--side", "64"]
    printed = run([*bench, "--out", str(tmp_path)], older)
    figures = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert {"machine", *PARTS} == set(figures)
    measured = [figure for part in PARTS for figure in figures[part].values()]
    assert len(measured) >= 20
    assert all(isinstance(figure, dict) for figure in measured), figures
    assert figures["parity"]["klein streamed"]["late_copies"] == 0
    assert all(part in printed for part in PARTS)


def test_a_part_keeps_the_figures_of_others(older: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bench_gpu.json").write_text(json.dumps({"klein": {"klein": {"step_s": 1}}}))
    bench = [sys.executable, "scripts/bench_gpu.py", "--size", "tiny", "--device", "cpu", "--side", "64"]
    run([*bench, "--part", "resident", "--out", str(tmp_path)], older)
    figures = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert figures["klein"] == {"klein": {"step_s": 1}}
    assert figures["resident"]["schnell"]["step_s"] > 0


def test_prompts_are_encoded_as_by_the_present_transformers(older: dict[str, str]) -> None:
    """The tests of text states, against diffusers and transformers' own classes, as they stand."""
    tests = ["tests/models/flux1/test_parity.py", "tests/models/flux2/test_parity.py"]
    printed = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "text", *tests], older)
    assert " passed" in printed

"""docs/reliability.md from the fault table, the tests that claim its rows, and the figures of the last long run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults import FAULTS, Answer, Fault

FIGURES = Path(__file__).parents[1] / "docs" / "reliability.json"
"""Written by scripts/soak: what was measured when, and on what machine."""

_HEAD = [
    "# What may go wrong, the right answer, and the tests that show it",
    "",
    "Every accepted request is answered exactly once, whatever happens to the worker, and the server is ready again by",
    "itself. The rows below are the data that the tests hold the server's answers against (`tests/faults.py`); *final*",
    "means that the answer carries `x-should-retry: false`. Errors always have OpenAI's shape; every 429, and a 503",
    "`model_loading` or `shutting_down`, carries a `Retry-After` of 1 to 60 seconds.",
    "",
    "| | fault | right answer | shown by |",
    "|---|---|---|---|",
]


def reliability_page(shown: Mapping[int, Sequence[str]]) -> str:
    """shown: the tests by the number of the fault they show."""
    rows = [
        f"| {number} | {fault.what} | {_right(fault)} | {'<br>'.join(shown.get(number, ()))} |"
        for number, fault in FAULTS.items()
    ]
    return "\n".join([*_HEAD, *rows, "", *_figures()])


def _right(fault: Fault) -> str:
    codes = " or ".join(str(code) for code in fault.exit_codes)
    parts = ["; ".join(map(_answer, fault.answers)), f"exit {codes}" if codes else "", fault.right]
    return ". ".join(part for part in parts if part)


def _answer(answer: Answer) -> str:
    code = f" `{answer.code}`" if answer.code else ""
    return f"{answer.status}{code}{', final' if answer.should_retry is False else ''}"


def _figures() -> list[str]:
    if not FIGURES.exists():
        return []
    run = json.loads(FIGURES.read_text())
    head = [
        "## Goal figures",
        "",
        f"Measured by `scripts/soak` on {run['date']}: {run['machine']}. The load is the number of processes that",
        "wanted a core when the measurement began; beyond the number of cores, times are those of a busy machine.",
        "",
        "| goal | what | wanted | figure | load | |",
        "|---|---|---|---|---|---|",
    ]
    columns = ("goal", "what", "wanted", "figure", "load", "verdict")
    rows = [f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in run["rows"]]
    return [*head, *rows, ""]

"""Writes the pages of docs/ that are made from code and tests: see PAGES. Tests hold them equal."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fluxserve.cli.settings import ServeSettings, default_of, flag_of, variable_of  # noqa: E402
from scripts.reliability_page import reliability_page  # noqa: E402
from tests.behaviours import BEHAVIOURS  # noqa: E402


def options() -> str:
    """docs/options.md"""
    lines = ["# Options of `fluxserve serve [MODEL]`", "", *_PRECEDENCE, ""]
    fields = ServeSettings.model_fields
    for group, names in groupby(fields, key=lambda name: fields[name].title):
        lines += [f"## {str(group).capitalize()}", "", "| option | variable | default | meaning |", "|---|---|---|---|"]
        for name in names:
            option = "MODEL" if name == "model" else f"`{flag_of(name)}`"
            meaning = fields[name].description
            lines.append(f"| {option} | `{variable_of(name)}` | {default_of(name)} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


_PRECEDENCE = [
    "A flag wins over a variable, a variable over `fluxserve.toml` in the working folder (or the file named with",
    "`--config`), that over the default. The file's keys are the options' names, with `-` or `_`. In a variable,",
    "switches are 1 or 0, options that may be given more than once are a comma list. API keys of all sources add up.",
]


def conformance() -> str:
    """docs/conformance.md"""
    shown = claims("behaviour")
    lines = ["# What clients may rely on, and the tests that show it", ""]
    for group, behaviours in BEHAVIOURS.items():
        lines += [f"## {group}", "", "| | behaviour | shown by |", "|---|---|---|"]
        lines += [
            f"| {number} | {text} | {'<br>'.join(shown.get(number, ()))} |" for number, text in behaviours.items()
        ]
        lines.append("")
    return "\n".join(lines)


def reliability() -> str:
    """docs/reliability.md"""
    return reliability_page(claims("fault"))


def claims(mark: str) -> dict[int, list[str]]:
    """The tests by each number that they are marked with, in the order of files and lines."""
    shown = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for number in sorted(set(_numbers(node, mark))):
                    shown[number].append(f"`{path.relative_to(ROOT / 'tests')}::{node.name}`")
    return dict(shown)


def _numbers(test: ast.FunctionDef | ast.AsyncFunctionDef, mark: str) -> Iterator[int]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{mark}":
            yield from (int(ast.literal_eval(argument)) for argument in decorator.args)


PAGES = {"options.md": options, "conformance.md": conformance, "reliability.md": reliability}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page())

"""The generated pages of docs/ say what the code and the tests have."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.make_docs import PAGES, claims
from tests.behaviours import BEHAVIOURS
from tests.faults import FAULTS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.behaviour(65)
@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), "run scripts/make_docs.py"


def test_every_behaviour_is_shown_by_a_test() -> None:
    promised = {number for group in BEHAVIOURS.values() for number in group}
    assert promised == set(claims("behaviour"))


def test_every_fault_is_shown_by_a_test() -> None:
    assert set(FAULTS) == set(claims("fault"))


def test_no_page_is_half_merged() -> None:
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    lines = {(page.name, line) for page in pages for line in page.read_text().splitlines()}
    assert not {(name, line) for name, line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))}

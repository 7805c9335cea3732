"""The tree of exceptions is the one that is drawn, each has a code of its own, and each exit code is said once."""

from __future__ import annotations

import inspect
import re

from fluxserve import errors
from fluxserve.errors import FluxserveError
from fluxserve.exit_codes import EXIT_CODES, REFUSALS, exit_code

CLASSES = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}
ABSTRACT = {"Refused", "GenerationFailed"}
"""Only their subclasses are refusals and failures with a code of their own."""


def drawn() -> dict[str, str]:
    """The parent of each class in the tree at the head of errors.py."""
    parents: dict[str, str] = {}
    path = ["FluxserveError"]
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        if branches := re.findall(r"[├└] (\w+)", line):
            depth = re.search("[├└]", line).start() // 2 + 1  # type: ignore[union-attr]
            del path[depth:]
            parents |= dict.fromkeys(branches, path[-1])
            path.append(branches[-1])
    return parents


def test_the_tree_is_the_one_that_is_drawn() -> None:
    real = {name: cls.__base__.__name__ for name, cls in CLASSES.items() if cls is not FluxserveError}  # type: ignore[union-attr]
    assert drawn() == real


def test_each_error_has_its_code() -> None:
    codes = {name: cls.code for name, cls in CLASSES.items() if name not in ABSTRACT | {"InvalidRequest"}}
    assert len(set(codes.values())) == len(codes)


def test_every_error_has_an_exit_code_and_refusals_are_the_workers() -> None:
    assert {exit_code(cls("")) for cls in CLASSES.values()} == set(EXIT_CODES.values())
    assert {exit_code(errors.DeviceError("")), exit_code(errors.Cancelled("")), *REFUSALS} == {1, 65, 69, 78}

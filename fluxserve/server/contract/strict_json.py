"""A JSON object from raw bytes, by the letter: what JSON forbids or what could hurt later is refused here.

`json.loads` alone lets NaN, 1e999, lone surrogates and duplicate keys pass and
fails on depth and long integers with errors of its own.
"""

from __future__ import annotations

import json
import math
from typing import Any

from fluxserve.errors import InvalidRequest

DEEPEST_NESTING = 32
_LONGEST_INTEGER = 400
"""Digits; more than a float's range, and less than Python's limit for int() on text."""


def parse_json_object(body: bytes) -> dict[str, Any]:
    """The object that `body` holds.

    Raises:
        InvalidRequest: not UTF-8, not JSON, not an object, a key twice, nested deeper than 32, a number that is not
            finite, or text that is not Unicode.
    """
    try:
        document = json.loads(body.decode("utf-8"), parse_int=_bounded_int, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise InvalidRequest(f"the body must be JSON in UTF-8: {_reason(error)}", code="invalid_json") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {type(document).__name__}", code="invalid_json")
    for key, value in document.items():
        _check(key, None, 1)
        _check(value, key, 2)
    return document


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"invalid byte at position {error.start}"
    return str(error)


def _bounded_int(text: str) -> int | float:
    return int(text) if len(text) <= _LONGEST_INTEGER else math.inf


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:64]!r} occurs twice in one object")
    return document


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body may be nested at most {DEEPEST_NESTING} levels deep", code="invalid_json")


def _check(value: object, param: str | None, depth: int) -> None:
    """Walks one value of the document; `param` is the top-level key it belongs to."""
    if depth > DEEPEST_NESTING:
        raise _too_deep()
    match value:
        case float() if not math.isfinite(value):
            raise InvalidRequest(f"{param} must be a finite number within the range of a double", param=param)
        case str() if not _is_unicode(value):
            raise InvalidRequest("text must be Unicode, got a lone surrogate", param=param)
        case list():
            for item in value:
                _check(item, param, depth + 1)
        case dict():
            for key, item in value.items():
                _check(key, param, depth + 1)
                _check(item, param, depth + 1)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

"""A JSON object from raw bytes, by the letter: what JSON forbids or what could hurt later is refused here.

`json.loads` alone lets NaN, 1e999, lone surrogates and duplicate keys pass and
fails on depth and long integers with errors of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from fluxserve.errors import InvalidRequest

DEEPEST_NESTING = 32
MOST_KEYS, MOST_VALUES = 1_000, 10_000
"""Keys of one object; keys and values in all. No request has a use for a tenth of them."""
_MOST_MARKS = 100_000
"""Commas and brackets, those in texts too: more than two prompts can hold. Counted first, in next to no time."""
_LONGEST_INTEGER = 400
"""Digits; more than a float's range, and less than Python's limit for int() on text."""


def parse_json_object(body: bytes) -> dict[str, Any]:
    """The object that `body` holds.

    Raises:
        InvalidRequest: not UTF-8, not JSON, not an object, a key twice, nested deeper than 32, too many keys or values,
            a number that is not finite, or text that is not Unicode.
    """
    document = parse_json(body)
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {type(document).__name__}", code="invalid_json")
    return document


def parse_json(body: bytes) -> Any:
    """The value that `body` holds. Raises InvalidRequest as `parse_json_object` does."""
    if sum(body.count(mark) for mark in b",[{") > _MOST_MARKS:
        raise _too_many()
    try:
        document = json.loads(body.decode("utf-8"), parse_int=_bounded_int, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise InvalidRequest(f"the body must be JSON in UTF-8: {_reason(error)}", code="invalid_json") from None
    _check(document)
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
    if len(pairs) > MOST_KEYS:
        raise ValueError(f"an object may have at most {MOST_KEYS} keys, got {len(pairs)}")
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"the key {name[:64]!r} occurs twice in one object")
        document[name] = value
    return document


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body may be nested at most {DEEPEST_NESTING} levels deep", code="invalid_json")


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"the body may hold at most {MOST_VALUES} keys and values", code="invalid_json")


def _check(document: object) -> None:
    """Walks the document, level by level, and stops at the first thing that is refused."""
    level: list[tuple[object, str | None]] = [(document, None)]
    seen = 0
    for depth in range(DEEPEST_NESTING + 1):
        seen += len(level)
        if seen > MOST_VALUES:
            raise _too_many()
        for value, param in level:
            _check_scalar(value, param)
        inner = (held for value, param in level for held in _inside(value, param, top=depth == 0))
        level = list(islice(inner, MOST_VALUES + 1 - seen))
        if not level:
            return
    raise _too_deep()


def _inside(value: object, param: str | None, top: bool) -> Iterator[tuple[object, str | None]]:
    """What a list or an object holds, with the top-level key it belongs to."""
    if isinstance(value, list):
        yield from ((item, param) for item in value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key, None if top else param
            yield item, key if top else param


def _check_scalar(value: object, param: str | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"{param} must be a finite number within the range of a double", param=param)
    if isinstance(value, str) and not _is_unicode(value):
        raise InvalidRequest("text must be Unicode, got a lone surrogate", param=param)


def _is_unicode(text: str) -> bool:
    if text.isascii():  # known of each text: pictures are not copied
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

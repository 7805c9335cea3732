"""Log lines: readable for people, one JSON object for machines, and nothing can break out of its line."""

from __future__ import annotations

import json
import logging
import sys

from fluxserve.logs import FIELDS, JsonLines


def line(message: str, *arguments: object, **extra: object) -> dict[str, object]:
    record = logging.getLogger("x").makeRecord(
        "x", logging.INFO, "f", 1, message, arguments, None, extra={FIELDS: extra}
    )
    formatted = JsonLines("front").format(record)
    assert "\n" not in formatted
    return dict(json.loads(formatted))


def test_a_record_is_one_object_with_its_fields() -> None:
    told = line("%s of %d", "one", 2, seed=7, code=None)
    assert told["message"] == "one of 2"
    assert (told["level"], told["process"], told["seed"], told["code"]) == ("info", "front", 7, None)
    assert str(told["time"]).endswith("+00:00")


def test_nothing_breaks_out_of_its_line() -> None:
    assert line("%s", 'a\n{"forged": 1}\r\x1b[2J\u2028')["message"] == 'a\n{"forged": 1}\r\x1b[2J\u2028'


def test_a_traceback_is_a_field() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    assert "ValueError: why" in json.loads(JsonLines("worker").format(record))["exception"]

"""How log records look: for people on a terminal, one JSON object a line elsewhere."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

FIELDS = "fields"
"""The name under which `extra` carries a record's fields: logger.info(text, extra={FIELDS: {...}})."""


class JsonLines(logging.Formatter):
    """One object a line: time, level, process, message, and the record's fields. Line breaks are escaped by JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(process: str) -> None:
    """Sends all logs of this process to stderr. process: front or worker."""
    handler = logging.StreamHandler(sys.stderr)
    readable = logging.Formatter(f"%(asctime)s {'' if process == 'front' else process + ': '}%(message)s", "%H:%M:%S")
    handler.setFormatter(readable if sys.stderr.isatty() else JsonLines(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

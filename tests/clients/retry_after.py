"""What OpenAI's clients make of a refusal's Retry-After: the rows of docs/interop_retries.md.

`tests/clients/test_retry_after.py` runs the clients against a socket and holds what they do against these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OWN, GIVES_UP = "½ s", "gives up"
"""The client's own first pause, 0.375 to 0.5 s; no second try."""


@dataclass(frozen=True)
class Seen:
    """What becomes of a 429 with these headers: seconds waited before the second try, OWN or GIVES_UP.

    headers: {in N} is an HTTP date N seconds ahead.
    """

    headers: Mapping[str, str]
    old_python: str
    python: str
    old_node: str
    node: str


def _after(value: str) -> Mapping[str, str]:
    return {"Retry-After": value}


RETRIES = {
    "none": Seen({}, OWN, OWN, OWN, OWN),
    "`Retry-After: 0`": Seen(_after("0"), OWN, OWN, "0 s", "0 s"),
    "`Retry-After: 2.5`": Seen(_after("2.5"), "2.5 s", "2.5 s", "2.5 s", "2.5 s"),
    "`Retry-After: 60`": Seen(_after("60"), "60 s", "60 s", "60 s", "60 s"),
    "`Retry-After: 61`": Seen(_after("61"), OWN, "61 s", "61 s", OWN),
    "`Retry-After: 120`": Seen(_after("120"), OWN, "120 s", "120 s", OWN),
    "`Retry-After: 121`": Seen(_after("121"), OWN, GIVES_UP, "121 s", OWN),
    "`Retry-After: -1`": Seen(_after("-1"), OWN, OWN, "0 s", OWN),
    "`Retry-After: soon`": Seen(_after("soon"), OWN, OWN, "0 s", OWN),
    "`Retry-After:` a date in 30 s": Seen(_after("{in 30}"), "30 s", "30 s", "30 s", "30 s"),
    "`Retry-After:` a date in 90 s": Seen(_after("{in 90}"), OWN, "90 s", "90 s", OWN),
    "`Retry-After:` a date in 300 s": Seen(_after("{in 300}"), OWN, GIVES_UP, "300 s", OWN),
    "`Retry-After: 7`, `retry-after-ms: 1500`": Seen(
        {"Retry-After": "7", "retry-after-ms": "1500"}, "1.5 s", "1.5 s", "1.5 s", "1.5 s"
    ),
    "`Retry-After: 7`, `x-should-retry: false`": Seen(
        {"Retry-After": "7", "x-should-retry": "false"}, GIVES_UP, GIVES_UP, GIVES_UP, GIVES_UP
    ),
}
CLIENTS = {
    "old_python": ("python", ("1.109.1", "2.8.0")),
    "python": ("python", ("3.54.0", "3.57.0")),
    "old_node": ("node", ("6.49.0",)),
    "node": ("node", ("7.59.0",)),
}
"""Who is meant by each column: language, versions."""

"""What a request's Prefer header asks of how it is answered (RFC 7240): respond-async and wait."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

_PREFERENCE = re.compile(r'\s*([A-Za-z-]+)\s*(?:=\s*"?([0-9]{1,9})"?)?\s*(?:;[^,]*)?')
LONGEST_WAIT_S = 60


def wait_before_202_s(headers: Headers) -> int | None:
    """Seconds to wait for the answer before it is promised instead; None: it is waited for, however long it takes."""
    preferences: dict[str, str] = {}
    for each in ",".join(headers.getlist("prefer")).split(","):
        if match := _PREFERENCE.fullmatch(each):
            preferences.setdefault(match[1].lower(), match[2] or "")
    if "respond-async" not in preferences:
        return None
    return min(int(preferences.get("wait") or 0), LONGEST_WAIT_S)

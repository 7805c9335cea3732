"""A content filter, as an operator would write one."""

from __future__ import annotations

import time


def no_dogs(prompt: str, image: bytes | None) -> str | None:
    if "bug" in prompt:
        raise RuntimeError("the filter is broken")
    return "no dogs here" if "dog" in prompt else None


def slow(prompt: str, image: bytes | None) -> str | None:
    time.sleep(60)
    return None

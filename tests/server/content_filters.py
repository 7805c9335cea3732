"""A content filter, as an operator would write one."""

from __future__ import annotations

import time


def no_dogs(prompt: str, image: bytes | None) -> str | None:
    if "bug" in prompt:
        raise RuntimeError("the filter is broken")
    return "no dogs here" if "dog" in prompt else None


def slow_about_cats(prompt: str, image: bytes | None) -> str | None:
    time.sleep(4.0 if "cat" in prompt else 0.0)
    return None


def slow(prompt: str, image: bytes | None) -> str | None:
    time.sleep(60)
    return None

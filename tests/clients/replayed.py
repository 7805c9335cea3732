"""Requests of programs too heavy to install here, as their sources build them: rows of docs/interop.md's last table.

`test_interop.py` sends them and reads of the answer what the program reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Reads = Literal["url", "b64_json"]


@dataclass(frozen=True)
class Replayed:
    """image: the field of a form that holds the picture; None: sent as JSON. reads: what of the answer is looked at."""

    path: str
    fields: dict[str, Any]
    reads: Reads
    image: str | None = None


REPLAYED: dict[str, tuple[Replayed, ...]] = {
    "n8n (OpenAI node v2, at 0713e95)": (
        Replayed("/v1/images/generations", {"prompt": "a", "model": "gpt-image-1-mini"}, "b64_json"),
        Replayed(
            "/v1/images/generations",
            {"prompt": "a", "model": "dall-e-3", "response_format": "url", "quality": "hd", "size": "1024x1024"},
            "url",
        ),
        Replayed(
            "/v1/images/edits",
            {"prompt": "a", "model": "gpt-image-1", "n": "1", "size": "auto", "quality": "auto"},
            "b64_json",
            image="image[]",
        ),
        Replayed(
            "/v1/images/edits",
            {"prompt": "a", "model": "dall-e-2", "n": "1", "size": "256x256", "response_format": "url"},
            "url",
            image="image",
        ),
    ),
    "Open WebUI (routers/images.py, at 02530d5)": (
        Replayed(
            "/v1/images/generations",
            {"model": "default", "prompt": "a", "n": 1, "size": "512x512", "response_format": "b64_json"},
            "b64_json",
        ),
        Replayed(
            "/v1/images/generations?api-version=2025-04-01",
            {"model": "gpt-image-1", "prompt": "a", "n": 1, "size": "512x512"},
            "b64_json",
        ),
        Replayed(
            "/v1/images/edits",
            {"model": "default", "prompt": "a", "response_format": "b64_json"},
            "b64_json",
            image="image[]",
        ),
    ),
    "Semantic Kernel (Python, OpenAITextToImage, at 04e03b3)": (
        Replayed(
            "/v1/images/generations",
            {"prompt": "a", "model": "dall-e-3", "size": "512x512", "quality": "standard", "style": "vivid", "n": 1},
            "url",
        ),
    ),
}

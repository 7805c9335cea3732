"""Paths that more than the routes know, and what people type for them."""

from __future__ import annotations

import re

LIVEZ, READYZ, HEALTH, METRICS = "/livez", "/readyz", "/health", "/metrics"
HEALTH_PATHS = frozenset({LIVEZ, READYZ, HEALTH})
PICTURES = "/images"
"""Where stored pictures are fetched from."""
IMAGE_REQUESTS = "/v1/images"
"""Where pictures are asked for."""
MODELS = "/v1/models"
JOBS = "/v1/jobs"
"""Requests that are answered later."""
RESPONSES = "/v1/responses"
MCP, HF, WEBUI = "/mcp", "/hf", "/sdapi/v1"
"""Doors for agents, Hugging Face's client and Stable Diffusion WebUI's."""
STUDIO = "/studio"
"""Where the page to draw in and its files lie; it is at / too."""

_BASE = r"(?:/(?:openai|v1|images|generations|edits|variations))*"
"""What a base URL may end with: the version or not, twice, or a whole endpoint, behind which clients put theirs."""
_IMAGE_REQUEST = re.compile(_BASE + r"/images/(generations|edits|variations)", re.IGNORECASE)
_MODEL = re.compile(_BASE + r"/models(/.*)?", re.IGNORECASE | re.DOTALL)


def canonical_path(path: str) -> str:
    """The route that is meant: without doubled and trailing slashes, under /v1 where OpenAI's routes lie.

    Pictures keep their paths to the letter; /studio/ is told from /studio, whose page names its files from there.
    """
    tidy = re.sub(r"/{2,}", "/", path).rstrip("/") or "/"
    if match := _IMAGE_REQUEST.fullmatch(tidy):
        return f"{IMAGE_REQUESTS}/{match[1].lower()}"
    if match := _MODEL.fullmatch(tidy):
        return MODELS + (match[1] or "")
    return path if path.startswith(f"{PICTURES}/") or path == f"{STUDIO}/" else tidy


def draws(path: str) -> bool:
    """Whether a POST there asks for pictures."""
    return path.startswith(f"{IMAGE_REQUESTS}/") or path in (RESPONSES, HF, f"{WEBUI}/txt2img", f"{WEBUI}/img2img")


def is_page(path: str) -> bool:
    """Whether it is the page to draw in, or a file of it."""
    return path in ("/", STUDIO) or path.startswith(f"{STUDIO}/")

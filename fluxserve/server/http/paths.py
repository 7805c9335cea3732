"""Paths that more than the routes know: who may ask without a key, what is not held up, what the log leaves out."""

from __future__ import annotations

LIVEZ, READYZ, HEALTH, METRICS = "/livez", "/readyz", "/health", "/metrics"
HEALTH_PATHS = frozenset({LIVEZ, READYZ, HEALTH})
PICTURES = "/images"
"""Where stored pictures are fetched from."""
IMAGE_REQUESTS = "/v1/images"
"""Where pictures are asked for."""

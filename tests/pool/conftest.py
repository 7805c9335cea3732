"""Servers of several fake models, on a device whose room the tests choose."""

from __future__ import annotations

from tests.server.conftest import start_server

__all__ = ["start_server"]

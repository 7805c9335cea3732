"""The shapes in which the doors' programs read an error; everywhere else it is OpenAI's."""

from __future__ import annotations

from typing import Any

from fluxserve.server.http.paths import HF, MCP, WEBUI

_JSON_RPC_SERVER_ERROR = -32000


def shaped(body: dict[str, Any], path: str) -> dict[str, Any]:
    """body: OpenAI's `{"error": {...}}`. path: the route that was asked."""
    error = body["error"]
    if path == HF:
        return {"error": error["message"], "error_type": error["code"]}
    if path.startswith(f"{WEBUI}/"):
        return {"error": error["code"], "detail": error["message"], "body": "", "errors": error["message"]}
    if path == MCP:
        rpc = {"code": _JSON_RPC_SERVER_ERROR, "message": error["message"], "data": error}
        return {"jsonrpc": "2.0", "id": None, "error": rpc}
    return body

"""Whose each session of the agents' door is: a session serves its own client, and nobody's fill all there may be."""

from __future__ import annotations

from collections import Counter, OrderedDict

from fluxserve.errors import InvalidRequest

MOST_SESSIONS = 256
SESSION_HEADER = "mcp-session-id"


class SessionOwners:
    """Sessions with their clients, the one used last at the end."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, str] = OrderedDict()

    def check(self, session: str, client: str) -> None:
        """The client uses it. Raises InvalidRequest (`not_found`): it is not this client's."""
        if self._clients.get(session) != client:
            raise InvalidRequest("there is no such session; initialize another", code="not_found")
        self._clients.move_to_end(session)

    def opened(self, session: str, client: str) -> None:
        """It is this client's."""
        self._clients[session] = client

    def surplus(self) -> str | None:
        """Forgets a session that has to end, and names it: the one that was not used for longest of who holds most."""
        if len(self._clients) <= MOST_SESSIONS:
            return None
        holder = Counter(self._clients.values()).most_common(1)[0][0]
        session = next(session for session, client in self._clients.items() if client == holder)
        del self._clients[session]
        return session

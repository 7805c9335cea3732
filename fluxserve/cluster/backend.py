"""What the ingress needs of a model's deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from starlette.types import Message, Scope

from fluxserve.cluster.figures import Figures
from fluxserve.cluster.replica import Told


class Backend(Protocol):
    """The replicas of one model."""

    def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """One replica's answer, as it comes. Closed early, the request is cancelled there.

        Raises:
            ReplicaLost: the replica died, or there is none. QueueFull: too many requests wait for one.
        """
        ...

    async def tell(self) -> list[Told]:
        """What each replica that is up says of its model; none is started for it."""
        ...

    async def figures(self) -> list[Figures]:
        """Of each replica that is up."""
        ...

    async def first_told(self) -> Told:
        """What one says, once there is one: started for it, if need be."""
        ...

"""LoRAs by name, brought to the device when first asked for, and run beside the networks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import nn

from fluxserve.errors import InvalidRequest
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.request import LoraChoice
from fluxserve.weights.lora.apply import LoraHost, Weighted, placed, side_branches, weigh
from fluxserve.weights.lora.file import Lora


@dataclass(frozen=True)
class LoraSet:
    """LoRAs that act together on a sample. choices: equal ones change alike. text: those that change the prompt."""

    choices: tuple[LoraChoice, ...] = ()
    text: tuple[LoraChoice, ...] = ()
    branches: Mapping[str, Weighted] = field(default_factory=dict)

    def beside(self, name: str, network: nn.Module) -> AbstractContextManager[None]:
        """They act on `network` for as long as the context lasts."""
        return side_branches(network, self.branches.get(name, {}))


NO_LORAS = LoraSet()


class LoraRegistry:
    """The LoRAs that requests may name. limit_bytes: of those kept on the device for the next request.

    hosts: the networks they run beside; encoders: which of them read the prompt.
    """

    def __init__(
        self, loras: Mapping[str, Lora], hosts: Mapping[str, LoraHost], encoders: Collection[str], limit_bytes: int
    ) -> None:
        self._loras = loras
        self._encoders = encoders
        self._hosts = hosts
        self._placed = ByteBoundedCache[Lora](limit_bytes, lambda lora: lora.nbytes)

    def take(self, choices: Sequence[LoraChoice]) -> LoraSet:
        """The chosen ones, on the device.

        Raises:
            InvalidRequest: there is none of that name.
        """
        acting = tuple(sorted((choice for choice in choices if choice.scale), key=lambda c: (c.name, c.scale)))
        chosen = [(self._place(choice.name), choice) for choice in acting]
        text = tuple(choice for lora, choice in chosen if any(name in lora.branches for name in self._encoders))
        branches = {
            name: weigh((lora.branches.get(name, {}), choice.scale) for lora, choice in chosen) for name in self._hosts
        }
        return LoraSet(acting, text, branches)

    def _place(self, name: str) -> Lora:
        lora = self._placed.get(name)
        if lora is None:
            if name not in self._loras:
                raise InvalidRequest(f"no LoRA {name!r} was loaded", param="loras", code="lora_not_found")
            lora = placed(self._loras[name], self._hosts)
            self._placed.put(name, lora)
        return lora

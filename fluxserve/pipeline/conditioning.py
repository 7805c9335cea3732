"""What the denoising loop needs of a prompt, computed once before it: text states and modulation rows.

Knows nothing of noise or pictures. The rows of all steps are computed at once because they depend on time, guidance
and the pooled prompt alone: a quarter of the transformer's weights is then untouched while stepping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.models.flux1.text import PromptStates, TextEncoders
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.pipeline.loras import LoraSet

PROMPT_CACHE_BYTES = 256 * 2**20
MODULATION_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Conditioning:
    """text: the encoded prompt. modulation: (steps, M) on the host, one row a step. cached: no encoder ran for it."""

    text: PromptStates
    modulation: Tensor
    cached: bool


class Conditioner:
    """Makes Conditionings, remembering prompts and modulation rows within a bound of bytes each."""

    def __init__(self, encoders: TextEncoders, transformer: FluxTransformer) -> None:
        self.encoders = encoders
        self.transformer = transformer
        self._prompts = ByteBoundedCache[PromptStates](PROMPT_CACHE_BYTES, lambda states: states.nbytes)
        self._rows = ByteBoundedCache[Tensor](MODULATION_CACHE_BYTES, lambda rows: rows.nbytes)

    def condition(
        self,
        prompt: str,
        max_length: int,
        guidance: float | None,
        times: tuple[float, ...],
        checkpoint: Callable[[], None],
        loras: LoraSet,
    ) -> Conditioning:
        """times: the steps' start times. guidance: None for models without."""
        text_key = (prompt, max_length, loras.text)
        text = self._prompts.get(text_key)
        cached = text is not None
        if text is None:
            with loras.beside("t5", self.encoders.t5), loras.beside("clip", self.encoders.clip):
                text = self.encoders.encode(prompt, max_length, checkpoint)
            self._prompts.put(text_key, text)
        rows_key = (text_key, loras.choices, guidance, times)
        rows = self._rows.get(rows_key)
        if rows is None:
            with loras.beside("transformer", self.transformer):
                rows = self._modulation(text.pooled, guidance, times)
            self._rows.put(rows_key, rows)
        return Conditioning(text, rows, cached)

    def forget(self) -> None:
        """Empties the caches, for those who time them."""
        self._prompts.clear()
        self._rows.clear()

    @torch.inference_mode()
    def _modulation(self, pooled: Tensor, guidance: float | None, times: tuple[float, ...]) -> Tensor:
        """Returns (steps, M) on the host."""
        t = torch.tensor(times, dtype=torch.float32, device=pooled.device)
        g = None if guidance is None else torch.full_like(t, guidance)
        return self.transformer.modulation(t, g, pooled.expand(len(times), -1)).cpu()

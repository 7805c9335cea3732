"""What the denoising loop needs of a prompt, computed once before it: text states and the rows of all steps."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxserve.models.family import CancellationCallback, Model, PromptStates, SeenPicture
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.pipeline.loras import LoraSet

PROMPT_CACHE_BYTES = 256 * 2**20
MODULATION_CACHE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Conditioning:
    """text: the encoded prompt. rows: (steps, M) on the host. cached: no encoder ran for it."""

    text: PromptStates
    rows: Tensor
    cached: bool


class Conditioner:
    """Makes Conditionings, remembering prompts and rows within a bound of bytes each."""

    def __init__(self, model: Model, denoiser: str) -> None:
        self._model = model
        self._denoiser = denoiser
        self._prompts = ByteBoundedCache[PromptStates](PROMPT_CACHE_BYTES, lambda states: states.nbytes)
        self._rows = ByteBoundedCache[Tensor](MODULATION_CACHE_BYTES, lambda rows: rows.nbytes)

    def condition(
        self,
        prompt: str,
        max_length: int,
        guidance: float | None,
        times: tuple[float, ...],
        cancellation: CancellationCallback,
        loras: LoraSet,
        pictures: Sequence[SeenPicture] = (),
    ) -> Conditioning:
        """times: the steps' start times. guidance: None for models without. pictures: for the image encoder."""
        text_key = (prompt, max_length, loras.text, tuple(map(_key_of, pictures)))
        text = self._prompts.get(text_key)
        cached = text is not None
        if text is None:
            with self._beside_encoders(loras):
                text = self._model.encode(prompt, max_length, cancellation, pictures)
            self._prompts.put(text_key, text)
        rows_key = (None if text.pooled is None else text_key, loras.choices, guidance, times)
        rows = self._rows.get(rows_key)
        if rows is None:
            with loras.beside(self._denoiser, self._model.denoiser), torch.inference_mode():
                rows = self._model.rows(torch.tensor(times, dtype=torch.float32), guidance, text)
            self._rows.put(rows_key, rows)
        return Conditioning(text, rows, cached)

    def forget(self) -> None:
        """Empties the caches, for those who time them."""
        self._prompts.clear()
        self._rows.clear()

    @contextmanager
    def _beside_encoders(self, loras: LoraSet) -> Iterator[None]:
        with ExitStack() as stack:
            for name, network in self._model.text_encoders.items():
                stack.enter_context(loras.beside(name, network))
            yield


def _key_of(picture: SeenPicture) -> Hashable:
    return hashlib.sha256(picture.pixels.numpy().tobytes()).digest(), picture.weight

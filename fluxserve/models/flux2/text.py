"""Prompts to what the transformer reads: the states of three layers of Qwen3, side by side.

Follows huggingface/diffusers `pipelines/flux2/pipeline_flux2_klein.py` `_get_qwen3_prompt_embeds`: the prompt stands in
Qwen3's chat template with an empty thought, padded on the right to the full length; padding is masked in the encoder,
and its states go to the transformer like all others. Marks such as `<|im_end|>` in a prompt count as marks.
"""

from __future__ import annotations

import logging

import torch
from transformers import Qwen2Tokenizer

from fluxserve.models.companions.qwen3 import Qwen3States
from fluxserve.models.family import CancellationCallback, PromptStates

log = logging.getLogger(__name__)

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class TextEncoder:
    """dtype: of what the transformer takes."""

    def __init__(self, states: Qwen3States, tokenizer: Qwen2Tokenizer, dtype: torch.dtype) -> None:
        self._states = states
        self._tokenizer = tokenizer
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, prompt: str, max_length: int, cancellation: CancellationCallback) -> PromptStates:
        """max_length: T, the padded length; a longer prompt loses its end, the template's too."""
        ids = self._tokenizer(TEMPLATE.format(prompt), verbose=False).input_ids
        if len(ids) > max_length:
            log.warning("prompt cut for Qwen3: %d of its %d tokens are used", max_length, len(ids))
        used = ids[:max_length]
        padding = max_length - len(used)
        mask = [1] * len(used) + [0] * padding
        states = self._states([*used, *[self._tokenizer.pad_token_id] * padding], mask, cancellation)
        return PromptStates(states.to(self._dtype), None, len(used), len(ids))

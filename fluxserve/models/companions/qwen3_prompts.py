"""Prompts to what a transformer reads of Qwen3: a chat template, tokens, the states of some layers.

Marks such as `<|im_end|>` in a prompt count as marks, as in huggingface/diffusers' pipelines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from transformers import Qwen2Tokenizer

from fluxserve.models.companions.qwen3 import Qwen3States
from fluxserve.models.family import CancellationCallback, PromptStates

log = logging.getLogger(__name__)


PaddedLength = Callable[[int, int], int]
"""(tokens of a prompt, most tokens) -> tokens with the padding on its right."""


def unpadded(tokens: int, _most: int) -> int:
    return tokens


def to_full_length(_tokens: int, most: int) -> int:
    return most


class PromptEncoder:
    """template: with {} where the prompt goes. padded_length: how far it is padded. dtype: of what is returned."""

    def __init__(
        self,
        states: Qwen3States,
        tokenizer: Qwen2Tokenizer,
        template: str,
        padded_length: PaddedLength,
        dtype: torch.dtype,
    ) -> None:
        self._states = states
        self._tokenizer = tokenizer
        self._template = template
        self._padded_length = padded_length
        self._dtype = dtype

    @torch.inference_mode()
    def encode(self, prompt: str, max_length: int, cancellation: CancellationCallback) -> PromptStates:
        """max_length: the most tokens; a longer prompt loses its end, the template's too. Padding is masked."""
        ids = self._tokenizer(self._template.format(prompt), verbose=False).input_ids
        if len(ids) > max_length:
            log.warning("prompt cut for Qwen3: %d of its %d tokens are used", max_length, len(ids))
        used = ids[:max_length]
        padding = self._padded_length(len(used), max_length) - len(used)
        mask = [1] * len(used) + [0] * padding
        states = self._states([*used, *[self._tokenizer.pad_token_id] * padding], mask, cancellation)
        return PromptStates(states.to(self._dtype), None, len(used), len(ids))

"""Prompts to the two things the transformer takes of them: T5's states and CLIP's pooled vector.

Follows black-forest-labs/flux `src/flux/modules/conditioner.py`: both tokenizers pad to their full length, and neither
encoder masks the padding.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from fluxserve.models.cancellation import CancellationPoint
from fluxserve.models.family import CancellationCallback, PromptStates
from fluxserve.models.flux1.text.spiece import read_vocabulary

log = logging.getLogger(__name__)

CLIP_LENGTH = 77
EXTRA_IDS = 100
"""T5's marks for gaps, which its vocabulary file leaves out; no prompt needs them, but each keeps its place."""


def load_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """From `tokenizer.json`, or from `spiece.model` where that is all there is: transformers would need sentencepiece.

    Raises:
        CheckpointError: `spiece.model` is damaged.
    """
    if (folder / "tokenizer.json").is_file():
        return T5Tokenizer.from_pretrained(folder)
    vocabulary = read_vocabulary(folder / "spiece.model")
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(EXTRA_IDS))]
    return T5Tokenizer(
        vocab=[*vocabulary.pieces, *extra],
        _spm_precompiled_charsmap=vocabulary.character_map or None,
        extra_ids=EXTRA_IDS,
    )


class TextEncoders:
    """T5 and CLIP with their tokenizers, on one device. Used by one thread at a time."""

    def __init__(
        self,
        t5: T5EncoderModel,
        clip: CLIPTextModel,
        t5_tokenizer: T5Tokenizer,
        clip_tokenizer: CLIPTokenizer,
        dtype: torch.dtype,
    ) -> None:
        self.t5, self.clip = t5, clip
        self.t5_tokenizer, self.clip_tokenizer = t5_tokenizer, clip_tokenizer
        self.dtype = dtype
        self._text_dtype, self._device = clip.dtype, clip.device
        self._cancellation = CancellationPoint(t5.encoder.block)
        # CLIP's position ids are in no file, and wrong without a word when left on the meta device.
        clip.embeddings.position_ids = torch.arange(clip.config.max_position_embeddings, device=clip.device)[None]

    @torch.inference_mode()
    def encode(self, prompt: str, max_length: int, cancellation: CancellationCallback) -> PromptStates:
        """Encodes one prompt. max_length: T5's padded length T. cancellation: called before every T5 block."""
        ids, prompt_tokens = self._t5_ids(prompt, max_length)
        embedded = self.t5.shared(ids).to(self._device, self._text_dtype)  # the table stays on the host
        with self._cancellation.calling(cancellation):
            txt = self.t5(inputs_embeds=embedded, attention_mask=None).last_hidden_state[0]
        pooled = self.clip(input_ids=self._clip_ids(prompt), attention_mask=None).pooler_output[0]
        return PromptStates(txt.to(self.dtype), pooled.to(self.dtype), min(prompt_tokens, max_length), prompt_tokens)

    def _t5_ids(self, prompt: str, max_length: int) -> tuple[Tensor, int]:
        ids = self.t5_tokenizer(prompt, truncation=False, verbose=False).input_ids
        padded = self.t5_tokenizer(prompt, padding="max_length", max_length=max_length, truncation=True).input_ids
        if len(ids) > max_length:
            log.warning("prompt cut for T5: %d of its %d tokens are used", max_length, len(ids))
        return torch.tensor([padded]), len(ids)

    def _clip_ids(self, prompt: str) -> Tensor:
        """CLIP sees at most 77 tokens; T5 carries the rest of a long prompt."""
        ids = self.clip_tokenizer(prompt, padding="max_length", max_length=CLIP_LENGTH, truncation=True).input_ids
        return torch.tensor([ids], device=self._device)

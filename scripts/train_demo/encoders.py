"""The demo's text encoders: transformers' CLIPTextModel and T5EncoderModel, small, run as the server runs them.

No attention mask anywhere; CLIP gives the state at its first end token, T5 the states of all 32 positions, pads too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from scripts.train_demo import sizes

ROUND = 16
"""Padded lengths are multiples of this."""


class TextEncoders(nn.Module):
    def __init__(self, clip_tokenizer: CLIPTokenizer, t5_tokenizer: T5Tokenizer) -> None:
        super().__init__()
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer, t5_tokenizer
        self.clip = CLIPTextModel(clip_config(clip_tokenizer))
        self.t5 = T5EncoderModel(t5_config(t5_tokenizer))

    @classmethod
    def untrained(cls, state: Path) -> TextEncoders:
        """With the tokenizers of state/tokenizer and state/tokenizer_2."""
        return cls(
            CLIPTokenizer.from_pretrained(state / "tokenizer"), T5Tokenizer.from_pretrained(state / "tokenizer_2")
        )

    def forward(self, texts: Sequence[str], full_length: bool = True) -> tuple[Tensor, Tensor]:
        """Pooled CLIP (B, POOLED_WIDTH) and T5 states (B, T, TEXT_WIDTH).

        T is TEXT_TOKENS; with `full_length` off, the longest text's length. CLIP's pads come after the end token and
        change nothing, so it always runs at that.
        """
        clip_ids = padded(self.clip_tokenizer, texts, sizes.CLIP_TOKENS, False)
        t5_ids = padded(self.t5_tokenizer, texts, sizes.TEXT_TOKENS, full_length)
        pooled = self.clip(input_ids=clip_ids).pooler_output
        return pooled, self.t5(input_ids=t5_ids, attention_mask=torch.ones_like(t5_ids)).last_hidden_state


def padded(tokenizer: CLIPTokenizer | T5Tokenizer, texts: Sequence[str], length: int, full: bool) -> Tensor:
    """(B, T) ids, cut at `length`. Few different T, since matrix kernels are made anew for each shape."""
    rows = [ids[:length] for ids in tokenizer(list(texts), truncation=True, max_length=length).input_ids]
    longest = length if full else min(length, -(-max(map(len, rows)) // ROUND) * ROUND)
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.POOLED_WIDTH,
        intermediate_size=4 * sizes.POOLED_WIDTH,
        projection_dim=sizes.POOLED_WIDTH,
        num_hidden_layers=sizes.CLIP_LAYERS,
        num_attention_heads=6,
        max_position_embeddings=sizes.CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_config(tokenizer: T5Tokenizer) -> T5Config:
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=sizes.TEXT_WIDTH,
        d_kv=32,
        d_ff=512,
        num_layers=sizes.T5_LAYERS,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        is_encoder_decoder=False,
        use_cache=False,
    )

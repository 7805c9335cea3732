"""The demo's text encoders: transformers' CLIPTextModel and T5EncoderModel, small, run as the server runs them.

No attention mask anywhere; CLIP gives the state at its first end token, T5 the states of all 32 positions, pads too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from scripts.train_demo import sizes
from scripts.train_demo.teacher import Teacher

ROUND = 8
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

    @classmethod
    def trained(cls, state: Path) -> TextEncoders:
        """As clip.pt and t5.pt hold them."""
        encoders = cls.untrained(state)
        for name in ("clip", "t5"):
            getattr(encoders, name).load_state_dict(torch.load(state / f"{name}.pt", weights_only=True)[name])
        return encoders

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Pooled CLIP (B, POOLED_WIDTH) and T5 states (B, TEXT_TOKENS, TEXT_WIDTH)."""
        device = self.clip.device
        return self.pooled(self.clip_ids(texts).to(device)), self.states(self.t5_ids(texts).to(device))

    def clip_ids(self, texts: Sequence[str]) -> Tensor:
        """(B, T). Pads come after the end token and change nothing: few are laid on."""
        return padded(self.clip_tokenizer, texts, sizes.CLIP_TOKENS, False)

    def t5_ids(self, texts: Sequence[str], full_length: bool = True) -> Tensor:
        """(B, T). T is TEXT_TOKENS; with `full_length` off, the longest text's length."""
        return padded(self.t5_tokenizer, texts, sizes.TEXT_TOKENS, full_length)

    def pooled(self, ids: Tensor) -> Tensor:
        """CLIP's vectors, (B, POOLED_WIDTH)."""
        return self.clip(input_ids=ids).pooler_output  # type: ignore[no-any-return]

    def states(self, ids: Tensor) -> Tensor:
        """T5's states, (B, T, TEXT_WIDTH)."""
        return self.t5(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state  # type: ignore[no-any-return]


def padded(tokenizer: CLIPTokenizer | T5Tokenizer, texts: Sequence[str], length: int, full: bool) -> Tensor:
    """(B, T) ids, cut at `length`. Few different T, since matrix kernels are made anew for each shape."""
    rows = [ids[:length] for ids in tokenizer(list(texts), truncation=True, max_length=length).input_ids]
    longest = length if full else min(length, -(-max(map(len, rows)) // ROUND) * ROUND)
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


def clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.POOLED_WIDTH,
        intermediate_size=sizes.CLIP_INTERMEDIATE,
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


def scaled_stream(clip: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """CLIP's weights with all that layers pass on multiplied: the norms before and after take it out again."""
    adding = ("embedding.weight", "out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")
    return {name: tensor * factor if name.endswith(adding) else tensor for name, tensor in clip.items()}


def start_embeddings(
    tokenizer: CLIPTokenizer | T5Tokenizer, table: nn.Embedding, size: float, teacher: Teacher
) -> None:
    """Every token begins as the principal components of the teacher's vector for it, `size` their deviation."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    vectors = teacher.embed([piece.replace("</w>", "").replace("▁", " ").strip() or "." for piece in pieces])
    centred = vectors - vectors.mean(0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    reduced = centred @ components[: table.weight.shape[1]].T
    table.weight.data.copy_(size * reduced / reduced.std())


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon takes: the weights inside the layers."""
    tables = ("embed", "shared", "bias")
    return [p for n, p in model.named_parameters() if p.ndim == 2 and not any(table in n for table in tables)]

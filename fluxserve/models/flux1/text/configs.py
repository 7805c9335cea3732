"""What transformers builds the text encoders from: our own reading of their sizes."""

from __future__ import annotations

from transformers import CLIPTextConfig, CLIPTokenizer, T5Config

from fluxserve.models.flux1.sizes import ClipParams, T5Params
from fluxserve.models.flux1.text.encoders import CLIP_LENGTH


def t5_config(params: T5Params) -> T5Config:
    """Our own reading of T5 v1.1; nothing in it comes from a file but integers."""
    return T5Config(
        vocab_size=params.vocab_size,
        d_model=params.d_model,
        d_kv=params.d_kv,
        d_ff=params.d_ff,
        num_layers=params.num_layers,
        num_heads=params.num_heads,
        relative_attention_num_buckets=params.relative_attention_num_buckets,
        relative_attention_max_distance=params.relative_attention_max_distance,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        use_cache=False,
    )


def clip_config(params: ClipParams, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The pooled vector is taken at the tokenizer's end token: a wrong id pools the same place for every prompt."""
    return CLIPTextConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        max_position_embeddings=max(params.max_position_embeddings, CLIP_LENGTH),
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

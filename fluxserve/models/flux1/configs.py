"""The config files of a model in diffusers' layout, from its sizes."""

from __future__ import annotations

from typing import Any

from fluxserve.models.flux1.sizes import ClipParams, FluxParams, T5Params
from fluxserve.models.flux1.toy_tokenizers import CLIP_END_ID, CLIP_START_ID
from fluxserve.models.flux1.variants import VARIANTS, pipeline_of
from fluxserve.models.markings import VARIANT_FIELD

DIFFUSERS_VERSION = "0.30.0"
"""The first diffusers that had FLUX.1, which its published configs name."""


def flux(params: FluxParams) -> dict[str, Any]:
    return {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "attention_head_dim": params.head_dim,
        "axes_dims_rope": list(params.axes_dim),
        "guidance_embeds": params.guidance_embed,
        "in_channels": params.in_channels,
        "joint_attention_dim": params.context_in_dim,
        "num_attention_heads": params.num_heads,
        "num_layers": params.depth,
        "num_single_layers": params.depth_single_blocks,
        "patch_size": 1,
        "pooled_projection_dim": params.vec_in_dim,
        **({"out_channels": params.out_channels} if params.picture != "start" else {}),
    }


def t5(params: T5Params) -> dict[str, Any]:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_ff": params.d_ff,
        "d_kv": params.d_kv,
        "d_model": params.d_model,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "num_heads": params.num_heads,
        "num_layers": params.num_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": params.relative_attention_max_distance,
        "relative_attention_num_buckets": params.relative_attention_num_buckets,
        "tie_word_embeddings": False,
        "vocab_size": params.vocab_size,
    }


def clip(params: ClipParams) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": CLIP_START_ID,
        "eos_token_id": CLIP_END_ID,
        "hidden_act": "quick_gelu",
        "hidden_size": params.hidden_size,
        "intermediate_size": params.intermediate_size,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": params.max_position_embeddings,
        "num_attention_heads": params.num_attention_heads,
        "num_hidden_layers": params.num_hidden_layers,
        "projection_dim": params.hidden_size,
        "vocab_size": params.vocab_size,
    }


def scheduler(variant: str) -> dict[str, Any]:
    dev = VARIANTS[variant].guidance_scale is not None
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0 if dev else 1.0,
        "use_dynamic_shifting": dev,
    }


def model_index(variant: str) -> dict[str, Any]:
    """Names the variant too, where neither shapes nor the class tell it."""
    index: dict[str, Any] = {
        "_class_name": pipeline_of(VARIANTS[variant]),
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    return index if variant in ("schnell", "dev", "kontext", "fill") else index | {VARIANT_FIELD: variant}

"""A FLUX.2 [klein] of random weights: what its files are called and hold, in either layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fluxserve.models.companions.flux2_autoencoder import flux2_autoencoder_recipes, stored_autoencoder
from fluxserve.models.companions.qwen3 import qwen3_gguf_recipes, qwen3_recipes, stored_qwen3
from fluxserve.models.companions.toy_qwen import write_qwen_tokenizer
from fluxserve.models.flux2.names import transformer_recipes
from fluxserve.models.flux2.sizes import Flux2Params, Flux2Sizes
from fluxserve.models.flux2.transformer import Flux2Transformer
from fluxserve.models.markings import VARIANT_FIELD
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import ENDINGS, Layout, Packing, SyntheticModel, SyntheticNetwork, as_named


def synthetic_model(sizes: Flux2Sizes, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
    """The three networks and the tokenizer of a variant."""
    tokenizers = {"tokenizer": write_qwen_tokenizer}
    if layout == "bfl":
        return SyntheticModel(_bfl_networks(sizes, variant, packing), tokenizers)
    files = {"scheduler/scheduler_config.json": SCHEDULER, "model_index.json": model_index(variant)}
    return SyntheticModel(_diffusers_networks(sizes, packing), tokenizers, files)


def _diffusers_networks(sizes: Flux2Sizes, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    transformer, autoencoder, qwen3 = _networks(sizes)
    flux, ae = sizes.transformer, sizes.autoencoder
    weights = "diffusion_pytorch_model.safetensors"
    return (
        replace(
            transformer,
            folder="transformer",
            filename=weights,
            recipes=transformer_recipes(flux.depth, flux.depth_single_blocks, flux.guidance_embed),
            packing=packing,
        ),
        replace(
            autoencoder,
            folder="vae",
            filename=weights,
            recipes=flux2_autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks),
        ),
        replace(
            qwen3,
            folder="text_encoder",
            filename="model.safetensors",
            recipes=qwen3_recipes(qwen3.shapes),
            packing=packing,
        ),
    )


def _bfl_networks(sizes: Flux2Sizes, variant: str, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    transformer, autoencoder, qwen3 = _networks(sizes)
    ending = ENDINGS[packing]
    recipes = qwen3_gguf_recipes if packing == "q4_0" else qwen3_recipes
    return (
        replace(transformer, filename=f"flux-2-{variant}{ending}", packing=packing, gguf_architecture="flux"),
        replace(autoencoder, filename="flux2-vae.safetensors"),
        replace(
            qwen3,
            filename=f"qwen_3_4b{ending}",
            recipes=recipes(qwen3.shapes),
            packing=packing,
            gguf_architecture="qwen3",
        ),
    )


def _networks(sizes: Flux2Sizes) -> tuple[SyntheticNetwork, SyntheticNetwork, SyntheticNetwork]:
    """Transformer, autoencoder and Qwen3 under canonical names, in no file yet."""
    flux = shapes_of(lambda: Flux2Transformer(sizes.transformer))
    width = sizes.transformer.hidden_size
    return (
        SyntheticNetwork("transformer", "", "", flux, as_named(flux), transformer_config(sizes.transformer), width),
        stored_autoencoder(sizes.autoencoder),
        stored_qwen3(sizes.qwen3, sizes.file_layers),
    )


SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}


def model_index(variant: str) -> dict[str, Any]:
    """Names the variant too: random weights need not have its width."""
    return {
        "_class_name": "Flux2KleinPipeline",
        VARIANT_FIELD: variant,
        "is_distilled": "base" not in variant,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }


def transformer_config(params: Flux2Params) -> dict[str, Any]:
    return {
        "_class_name": "Flux2Transformer2DModel",
        "attention_head_dim": params.head_dim,
        "axes_dims_rope": list(params.axes_dim),
        "guidance_embeds": params.guidance_embed,
        "in_channels": params.in_channels,
        "joint_attention_dim": params.context_in_dim,
        "mlp_ratio": 3.0,
        "num_attention_heads": params.num_heads,
        "num_layers": params.depth,
        "num_single_layers": params.depth_single_blocks,
        "patch_size": 1,
        "rope_theta": 2000,
        "timestep_guidance_channels": 256,
    }

"""A Z-Image of random weights: what its files are called and hold, in either layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fluxserve.models.companions.flux1_autoencoder import stored_autoencoder
from fluxserve.models.companions.qwen3 import qwen3_gguf_recipes, qwen3_recipes, stored_qwen3
from fluxserve.models.companions.toy_qwen import write_qwen_tokenizer
from fluxserve.models.markings import VARIANT_FIELD
from fluxserve.models.parts.autoencoder_names import autoencoder_recipes
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import ENDINGS, Layout, Packing, SyntheticModel, SyntheticNetwork
from fluxserve.models.zimage.names import single_file_recipes, transformer_recipes
from fluxserve.models.zimage.sizes import ZImageParams, ZImageSizes
from fluxserve.models.zimage.transformer import NORM_EPS, THETA, ZImageTransformer
from fluxserve.models.zimage.variants import SHIFT

SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": SHIFT,
    "use_dynamic_shifting": False,
}


def synthetic_model(sizes: ZImageSizes, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
    """The three networks and the tokenizer of a variant."""
    tokenizers = {"tokenizer": write_qwen_tokenizer}
    if layout == "bfl":
        return SyntheticModel(_single_files(sizes, variant, packing), tokenizers)
    files = {"scheduler/scheduler_config.json": SCHEDULER, "model_index.json": model_index(variant)}
    return SyntheticModel(_diffusers_networks(sizes, packing), tokenizers, files)


def _diffusers_networks(sizes: ZImageSizes, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    transformer, autoencoder, qwen3 = _networks(sizes)
    params, ae = sizes.transformer, sizes.autoencoder
    weights = "diffusion_pytorch_model.safetensors"
    return (
        replace(
            transformer,
            folder="transformer",
            filename=weights,
            recipes=transformer_recipes(params.depth, params.refiner_depth),
            packing=packing,
        ),
        replace(
            autoencoder,
            folder="vae",
            filename=weights,
            recipes=autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks),
        ),
        replace(
            qwen3,
            folder="text_encoder",
            filename="model.safetensors",
            recipes=qwen3_recipes(qwen3.shapes),
            packing=packing,
        ),
    )


def _single_files(sizes: ZImageSizes, variant: str, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    """As ComfyUI splits them."""
    transformer, autoencoder, qwen3 = _networks(sizes)
    name = {"zimage-turbo": "z_image_turbo", "zimage": "z_image"}[variant]
    recipes = qwen3_gguf_recipes if packing == "q4_0" else qwen3_recipes
    return (
        replace(transformer, filename=name + ENDINGS[packing], packing=packing, gguf_architecture="lumina2"),
        replace(autoencoder, filename="ae.safetensors"),
        replace(
            qwen3,
            filename=f"qwen_3_4b{ENDINGS[packing]}",
            recipes=recipes(qwen3.shapes),
            packing=packing,
            gguf_architecture="qwen3",
        ),
    )


def _networks(sizes: ZImageSizes) -> tuple[SyntheticNetwork, SyntheticNetwork, SyntheticNetwork]:
    """Transformer, autoencoder and Qwen3 under canonical names, in no file yet."""
    params = sizes.transformer
    shapes = shapes_of(lambda: ZImageTransformer(params))
    recipes, config = single_file_recipes(shapes), transformer_config(params, sizes.autoencoder.z_channels)
    return (
        SyntheticNetwork("transformer", "", "", shapes, recipes, config, params.hidden_size),
        stored_autoencoder(sizes.autoencoder),
        stored_qwen3(sizes.qwen3, sizes.file_layers),
    )


def model_index(variant: str) -> dict[str, Any]:
    """Names the variant too: nothing else in the folder does."""
    return {
        "_class_name": "ZImagePipeline",
        VARIANT_FIELD: variant,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def transformer_config(params: ZImageParams, channels: int) -> dict[str, Any]:
    """channels: of a latent."""
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_f_patch_size": [1],
        "all_patch_size": [2],
        "axes_dims": list(params.axes_dim),
        "axes_lens": [1024, 512, 512],
        "cap_feat_dim": params.context_in_dim,
        "dim": params.hidden_size,
        "in_channels": channels,
        "n_heads": params.num_heads,
        "n_kv_heads": params.num_heads,
        "n_layers": params.depth,
        "n_refiner_layers": params.refiner_depth,
        "norm_eps": NORM_EPS,
        "qk_norm": True,
        "rope_theta": float(THETA),
        "t_scale": 1000.0,
    }

"""A FLUX.3 image klein of random weights: what its files are called and hold, in either layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fluxserve.models.companions.flux2_autoencoder import flux2_autoencoder_recipes, stored_autoencoder
from fluxserve.models.companions.qwen3_vl import qwen3_vl_recipes, stored_qwen3_vl
from fluxserve.models.companions.toy_qwen import write_qwen_tokenizer
from fluxserve.models.flux3.names import transformer_recipes
from fluxserve.models.flux3.sizes import Flux3Params, Flux3Sizes
from fluxserve.models.flux3.transformer import THETA, TIME_DIM, Flux3Transformer
from fluxserve.models.flux3.variants import SHIFT
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import ENDINGS, Layout, Packing, SyntheticModel, SyntheticNetwork, as_named

SCHEDULER: dict[str, Any] = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": SHIFT,
    "use_dynamic_shifting": False,
}
_CLASSES = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "text_encoder": ("transformers", "Qwen3VLForConditionalGeneration"),
    "tokenizer": ("transformers", "Qwen3VLProcessor"),
    "transformer": ("diffusers", "Flux3Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
}


def synthetic_model(sizes: Flux3Sizes, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
    """The three networks and the tokenizer of a variant."""
    tokenizers = {"tokenizer": write_qwen_tokenizer}
    if layout == "bfl":
        return SyntheticModel(_single_files(sizes, variant, packing), tokenizers)
    files = {"scheduler/scheduler_config.json": SCHEDULER, "modular_model_index.json": modular_index(variant)}
    return SyntheticModel(_diffusers_networks(sizes, packing), tokenizers, files)


def _diffusers_networks(sizes: Flux3Sizes, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    transformer, autoencoder, qwen3_vl = _networks(sizes)
    params, ae = sizes.transformer, sizes.autoencoder
    weights = "diffusion_pytorch_model.safetensors"
    return (
        replace(
            transformer,
            folder="transformer",
            filename=weights,
            recipes=transformer_recipes(params.depth, params.depth_single_blocks, params.flow_map),
            packing=packing,
        ),
        replace(
            autoencoder,
            folder="vae",
            filename=weights,
            recipes=flux2_autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks),
        ),
        replace(qwen3_vl, folder="text_encoder", filename="model.safetensors", packing=packing),
    )


def _single_files(sizes: Flux3Sizes, variant: str, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    """As ComfyUI splits them; the text encoder is never GGUF."""
    transformer, autoencoder, qwen3_vl = _networks(sizes)
    name = {"flux3-klein": "flux-3-image-klein", "flux3-klein-base": "flux-3-image-klein-base"}[variant]
    beside: Packing = "bf16" if packing == "q4_0" else packing
    return (
        replace(transformer, filename=name + ENDINGS[packing], packing=packing, gguf_architecture="flux"),
        replace(autoencoder, filename="flux2-vae.safetensors"),
        replace(qwen3_vl, filename=f"qwen3vl_4b{ENDINGS[beside]}", packing=beside),
    )


def _networks(sizes: Flux3Sizes) -> tuple[SyntheticNetwork, SyntheticNetwork, SyntheticNetwork]:
    """Transformer, autoencoder and Qwen3-VL, in no file yet."""
    params = sizes.transformer
    shapes = shapes_of(lambda: Flux3Transformer(params))
    qwen3_vl = stored_qwen3_vl(sizes.qwen3_vl, sizes.file_layers)
    return (
        SyntheticNetwork(
            "transformer", "", "", shapes, as_named(shapes), transformer_config(params), params.hidden_size
        ),
        stored_autoencoder(sizes.autoencoder),
        replace(qwen3_vl, recipes=qwen3_vl_recipes(qwen3_vl.shapes)),
    )


def modular_index(variant: str) -> dict[str, Any]:
    """What diffusers' modular pipelines have in the place of a model_index.json."""
    kind = "Flux3" if "base" in variant else "Flux3Distilled"
    components = {name: [*of, {"subfolder": name, "type_hint": list(of)}] for name, of in _CLASSES.items()}
    return {"_class_name": f"{kind}ModularPipeline", "_blocks_class_name": f"{kind}AutoBlocks", **components}


def transformer_config(params: Flux3Params) -> dict[str, Any]:
    return {
        "_class_name": "Flux3Transformer2DModel",
        "attention_head_dim": params.head_dim,
        "axes_dims_rope": list(params.axes_dim),
        "cond_in_channels": params.in_channels,
        "flow_map": params.flow_map,
        "in_channels": params.in_channels,
        "joint_attention_dim": params.context_in_dim,
        "mlp_ratio": 3.0,
        "num_attention_heads": params.num_heads,
        "num_layers": params.depth,
        "num_single_layers": params.depth_single_blocks,
        "rope_theta": THETA,
        "timestep_channels": TIME_DIM,
    }

"""A FLUX.1 of random weights: what its files are called and hold, in either layout."""

from __future__ import annotations

from dataclasses import replace

from fluxserve.models.companions.flux1_autoencoder import stored_autoencoder
from fluxserve.models.flux1 import configs
from fluxserve.models.flux1.names import transformer_recipes
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import INPUT_WIDTHS, ModelSizes
from fluxserve.models.flux1.text.names import clip_recipes, clip_shapes, t5_gguf_recipes, t5_recipes, t5_shapes
from fluxserve.models.flux1.toy_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from fluxserve.models.flux1.variants import VARIANTS
from fluxserve.models.parts.autoencoder_names import autoencoder_recipes
from fluxserve.models.synthetic import ENDINGS, Layout, Packing, SyntheticModel, SyntheticNetwork, as_named

EMBEDDING_SCALE, POSITION_SCALE = 1.0, 0.1


def synthetic_model(sizes: ModelSizes, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
    """The four networks and two tokenizers of a variant; of its sizes, guidance and input are the variant's to tell."""
    row, flux = VARIANTS[variant], sizes.transformer
    flux = replace(
        flux,
        guidance_embed=row.guidance_scale is not None,
        in_channels=INPUT_WIDTHS[row.picture] * flux.out_channels,
    )
    sizes = replace(sizes, transformer=flux)
    tokenizers = {"tokenizer": write_clip_tokenizer, "tokenizer_2": write_t5_tokenizer}
    if layout == "bfl":
        return SyntheticModel(_bfl_networks(sizes, variant, packing), tokenizers)
    files = {
        "scheduler/scheduler_config.json": configs.scheduler(variant),
        "model_index.json": configs.model_index(variant),
    }
    return SyntheticModel(_diffusers_networks(sizes, packing), tokenizers, files)


def _diffusers_networks(sizes: ModelSizes, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    flux, ae, t5, clip = sizes.transformer, sizes.autoencoder, sizes.t5, sizes.clip
    flux_name, text_name = "diffusion_pytorch_model.safetensors", "model.safetensors"
    autoencoder, clip_l, t5_encoder = _companions(sizes)
    return (
        SyntheticNetwork(
            part="transformer",
            folder="transformer",
            filename=flux_name,
            shapes=transformer_shapes(flux),
            recipes=transformer_recipes(flux.depth, flux.depth_single_blocks, flux.guidance_embed),
            config=configs.flux(flux),
            width=flux.hidden_size,
            packing=packing,
        ),
        replace(
            autoencoder,
            folder="vae",
            filename=flux_name,
            recipes=autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks),
        ),
        replace(clip_l, folder="text_encoder", filename=text_name, recipes=clip_recipes(clip)),
        replace(t5_encoder, folder="text_encoder_2", filename=text_name, recipes=t5_recipes(t5), packing=packing),
    )


def _bfl_networks(sizes: ModelSizes, variant: str, packing: Packing) -> tuple[SyntheticNetwork, ...]:
    flux, t5 = sizes.transformer, sizes.t5
    ending = ENDINGS[packing]
    shapes = transformer_shapes(flux)
    autoencoder, clip_l, t5_encoder = _companions(sizes)
    return (
        SyntheticNetwork(
            part="transformer",
            folder="",
            filename=f"flux1-{variant}{ending}",
            shapes=shapes,
            recipes=as_named(shapes),
            config=configs.flux(flux),
            width=flux.hidden_size,
            packing=packing,
            gguf_architecture="flux",
        ),
        replace(autoencoder, filename="ae.safetensors"),
        replace(clip_l, filename="clip_l.safetensors", recipes=clip_recipes(sizes.clip)),
        replace(
            t5_encoder,
            filename=f"t5xxl{ending}",
            recipes=t5_gguf_recipes(t5) if packing == "q4_0" else t5_recipes(t5),
            packing=packing,
            gguf_architecture="t5encoder",
        ),
    )


def _companions(sizes: ModelSizes) -> tuple[SyntheticNetwork, SyntheticNetwork, SyntheticNetwork]:
    """Autoencoder, CLIP and T5 under canonical names, in no file yet."""
    clip, t5 = clip_shapes(sizes.clip), t5_shapes(sizes.t5)
    width, d_kv = sizes.transformer.hidden_size, sizes.t5.d_kv

    def t5_scale(name: str, shape: tuple[int, ...]) -> float | None:
        """T5 divides its scores by no root of d_kv."""
        return (
            float((shape[1] * d_kv) ** -0.5) if name.endswith("SelfAttention.q.weight") else _table_scale(name, shape)
        )

    return (
        stored_autoencoder(sizes.autoencoder),
        SyntheticNetwork("clip", "", "", clip, as_named(clip), configs.clip(sizes.clip), width, _table_scale),
        SyntheticNetwork("t5", "", "", t5, as_named(t5), configs.t5(sizes.t5), width, t5_scale),
    )


def _table_scale(name: str, _shape: tuple[int, ...]) -> float | None:
    if name in ("shared.weight", "embeddings.token_embedding.weight"):
        return EMBEDDING_SCALE
    return POSITION_SCALE if name.endswith(("position_embedding.weight", "relative_attention_bias.weight")) else None

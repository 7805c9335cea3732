"""FLUX.1 behind the seam: schnell, dev, Krea, Kontext and the demo."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from fluxserve.errors import CheckpointError
from fluxserve.models.companions.flux1_autoencoder import AUTOENCODER, Autoencoder, autoencoder_shapes
from fluxserve.models.family import (
    Arithmetic,
    BlockLayout,
    CancellationCallback,
    Component,
    Part,
    PromptStates,
    StepInputs,
    Told,
)
from fluxserve.models.flux1 import dimensions, names
from fluxserve.models.flux1.lora_names import lora_targets, names_lora
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import SIZES, ModelSizes
from fluxserve.models.flux1.synthetic import synthetic_model
from fluxserve.models.flux1.text import names as text_names
from fluxserve.models.flux1.text.configs import clip_config, t5_config
from fluxserve.models.flux1.text.encoders import TextEncoders, load_t5_tokenizer
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.models.flux1.variants import KONTEXT_PIPELINE, PIPELINE, VARIANTS, dev_variant
from fluxserve.models.lora_target import LoraTarget
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel
from fluxserve.models.variant import Variant, named_variant
from fluxserve.tensors.reader import Shapes

IMAGE_CONDITIONED = {6: "FLUX.1 Fill", 2: "a FLUX.1 control model (Canny or Depth)"}
"""Kinds of models by the width of an input token over that of an output token; those of text alone have 1."""

_MODULATION_PREFIXES = ("time_in.", "vector_in.", "guidance_in.", "final_layer.adaLN_modulation.")
_MODULATION_PARTS = (".img_mod.", ".txt_mod.", ".modulation.")


def is_modulation(key: str) -> bool:
    """Whether a transformer's tensor is used by `FluxTransformer.modulation` alone."""
    return key.startswith(_MODULATION_PREFIXES) or any(part in key for part in _MODULATION_PARTS)


TRANSFORMER = Part(
    name="transformer",
    title="FLUX.1 transformer",
    role="denoiser",
    folder="transformer",
    markers=(names.BFL_MARKER, names.BFL_WEIGHT_MARKER, names.DIFFUSERS_MARKER),
    canonical=names.canonical_transformer,
    bundle_prefix="model.diffusion_model.",
    gguf_architectures=("flux",),
    layout=BlockLayout(prefixes=("double_blocks.", "single_blocks."), on_host=is_modulation),
    names_lora=names_lora,
)
T5 = Part(
    name="t5",
    title="T5 text encoder",
    role="text_encoder",
    folder="text_encoder_2",
    markers=(text_names.T5_MARKER, text_names.T5_GGUF_MARKER),
    canonical=text_names.canonical_t5,
    bundle_prefix="text_encoders.t5xxl.transformer.",
    bundle_aliases=("t5xxl.transformer.", "text_encoder_2."),
    bundle_ignored=("text_encoders.t5xxl.logit_scale", "t5xxl.logit_scale"),
    gguf_architectures=("t5", "t5encoder"),
    layout=BlockLayout(prefixes=("encoder.block.",), tables={text_names.T5_EMBEDDING: (text_names.T5_TIED_EMBEDDING,)}),
    float16=False,
    tables=text_names.TABLES,
)
CLIP = Part(
    name="clip",
    title="CLIP text encoder",
    role="text_encoder",
    folder="text_encoder",
    markers=(text_names.CLIP_PREFIX + text_names.CLIP_MARKER, text_names.CLIP_MARKER),
    canonical=text_names.canonical_clip,
    bundle_prefix="text_encoders.clip_l.transformer.",
    bundle_aliases=("clip_l.transformer.", "text_encoder."),
    bundle_ignored=("text_encoders.clip_l.logit_scale", "clip_l.logit_scale"),
    float16=False,
    tables=text_names.TABLES,
)


class Flux1Model:
    """Both text encoders, the transformer and the autoencoder, with weights."""

    def __init__(self, encoders: TextEncoders, transformer: FluxTransformer, autoencoder: Autoencoder) -> None:
        self.denoiser = transformer
        self.autoencoder = autoencoder
        self.text_encoders: Mapping[str, nn.Module] = {"t5": encoders.t5, "clip": encoders.clip}
        self.encoders = encoders

    def encode(self, prompt: str, max_length: int, cancellation: CancellationCallback) -> PromptStates:
        return self.encoders.encode(prompt, max_length, cancellation)

    def rows(self, times: Tensor, guidance: float | None, text: PromptStates) -> Tensor:
        """A quarter of the transformer's weights, evaluated where they lie, so that no step touches them."""
        assert text.pooled is not None
        strength = None if guidance is None else torch.full_like(times, guidance)
        pooled = text.pooled.to(self.denoiser.time_in.in_layer.bias.device)
        return self.denoiser.modulation(times, strength, pooled.expand(len(times), -1)).cpu()

    def positions(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        return self.denoiser.rope(text_tokens, [(h // 2, w // 2) for h, w in grids])

    def velocity(self, inputs: StepInputs) -> Tensor:
        predicted = self.denoiser(inputs.image, inputs.text, inputs.rows, inputs.positions, inputs.caches)
        return predicted[:, : inputs.latents.shape[1]]


@dataclass(frozen=True)
class Flux1Architecture:
    """FLUX.1 at the sizes of one checkpoint."""

    sizes: ModelSizes

    @property
    def latents(self) -> PackedLatents:
        return PackedLatents(self.sizes.autoencoder.z_channels)

    @property
    def arithmetic(self) -> Arithmetic:
        """A double block's two streams share its tokens between them, and have a set of matrices each."""
        flux = self.sizes.transformer
        stream = 4 * flux.hidden_size**2 + 2 * flux.hidden_size * flux.mlp_hidden  # qkv, proj and the MLP
        return Arithmetic(
            hidden=flux.hidden_size,
            mlp_hidden=flux.mlp_hidden,
            heads=flux.num_heads,
            head_dim=flux.head_dim,
            blocks=flux.depth + flux.depth_single_blocks,
            token_values=stream * (flux.depth + flux.depth_single_blocks),
            matrix_values=stream * (2 * flux.depth + flux.depth_single_blocks),
            decoder_channels=2 * self.sizes.autoencoder.ch,
        )

    def shapes(self) -> Mapping[str, Shapes]:
        return {
            "transformer": transformer_shapes(self.sizes.transformer),
            "autoencoder": autoencoder_shapes(self.sizes.autoencoder),
            "t5": text_names.t5_shapes(self.sizes.t5),
            "clip": text_names.clip_shapes(self.sizes.clip),
        }

    def misfits(self) -> Collection[str]:
        flux = self.sizes.transformer
        widths = {
            "T5's width": (self.sizes.t5.d_model, flux.context_in_dim),
            "CLIP's width": (self.sizes.clip.hidden_size, flux.vec_in_dim),
            "a packed latent": (4 * self.sizes.autoencoder.z_channels, flux.out_channels),
        }
        return [
            f"{what} is {has}, the transformer takes {takes}" for what, (has, takes) in widths.items() if has != takes
        ]

    def lora_targets(self) -> Mapping[str, LoraTarget]:
        return lora_targets(self.sizes)

    def build(self, tokenizers: Mapping[str, Path]) -> Mapping[str, nn.Module]:
        clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers["tokenizer"])
        return {
            "transformer": FluxTransformer(self.sizes.transformer),
            "autoencoder": Autoencoder(self.sizes.autoencoder),
            "t5": T5EncoderModel(t5_config(self.sizes.t5)),
            "clip": CLIPTextModel(clip_config(self.sizes.clip, clip_tokenizer)),
        }

    def model(
        self, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Path], dtype: torch.dtype
    ) -> Flux1Model:
        transformer, autoencoder, t5, clip = (networks[n] for n in ("transformer", "autoencoder", "t5", "clip"))
        assert isinstance(transformer, FluxTransformer)
        assert isinstance(autoencoder, Autoencoder)
        clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers["tokenizer"])
        t5_tokenizer = load_t5_tokenizer(tokenizers["tokenizer_2"])
        return Flux1Model(TextEncoders(t5, clip, t5_tokenizer, clip_tokenizer, dtype), transformer, autoencoder)


class Flux1Family:
    """Models are told apart by whether they take guidance; what the files do not tell, they may name."""

    title = "FLUX.1"
    parts = (TRANSFORMER, AUTOENCODER, T5, CLIP)
    tokenizers: Mapping[str, tuple[str, ...]] = {
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "spiece.model"),
    }
    pipelines = (PIPELINE, KONTEXT_PIPELINE)
    sizes = tuple(SIZES)

    def variant(self, denoiser: Component, told: Told) -> Variant:
        source = denoiser.reader.source
        flux = dimensions.transformer_params(denoiser.reader, denoiser.config)
        if flux.in_channels != flux.out_channels:
            kind = IMAGE_CONDITIONED.get(flux.in_channels // flux.out_channels, "a model")
            raise CheckpointError(
                f"{source}: is {kind} with {flux.in_channels} input channels; fluxserve draws from text, "
                f"with models whose input has {flux.out_channels}"
            )
        usual = dev_variant(told.pipeline, told.name) if flux.guidance_embed else "schnell"
        variant = named_variant(VARIANTS, usual if told.variant is None else told.variant, source)
        if flux.guidance_embed != (variant.guidance_scale is not None):
            has = "guidance" if flux.guidance_embed else "no guidance"
            raise CheckpointError(f"{source}: takes {has}, and so is not of variant {variant.name!r}")
        return variant

    def architecture(self, components: Mapping[str, Component]) -> Flux1Architecture:
        transformer, autoencoder, t5, clip = (components[part.name] for part in self.parts)
        return Flux1Architecture(
            ModelSizes(
                transformer=dimensions.transformer_params(transformer.reader, transformer.config),
                autoencoder=autoencoder_params(autoencoder.reader, autoencoder.config),
                t5=dimensions.t5_params(t5.reader, t5.config),
                clip=dimensions.clip_params(clip.reader, clip.config),
            )
        )

    def synthetic(self, size: str, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
        return synthetic_model(SIZES[size], variant, layout, packing)


FLUX1_FAMILY = Flux1Family()

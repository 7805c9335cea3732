"""FLUX.2 [klein] behind the seam: 4B and 9B, distilled and base."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from fluxserve.errors import CheckpointError
from fluxserve.models.companions import qwen3
from fluxserve.models.companions.flux2_autoencoder import AUTOENCODER, Flux2Autoencoder, autoencoder_shapes
from fluxserve.models.companions.qwen3_prompts import PromptEncoder, to_full_length
from fluxserve.models.family import (
    Arithmetic,
    BlockLayout,
    CancellationCallback,
    Component,
    Part,
    PictureEncoder,
    PromptStates,
    SeenPicture,
    StepInputs,
    Told,
)
from fluxserve.models.flux2 import dimensions, names
from fluxserve.models.flux2.lora_names import lora_targets, names_lora
from fluxserve.models.flux2.sizes import KLEIN_9B, SIZES, TEXT_LAYERS, Flux2Sizes
from fluxserve.models.flux2.synthetic import synthetic_model
from fluxserve.models.flux2.transformer import Flux2Transformer
from fluxserve.models.flux2.variants import VARIANTS
from fluxserve.models.lora_target import LoraTarget
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel
from fluxserve.models.variant import Variant, named_variant
from fluxserve.tensors.reader import Shapes

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""Qwen3's chat template with an empty thought; what pads it goes to the transformer too, as in huggingface/diffusers
`pipelines/flux2/pipeline_flux2_klein.py` `_get_qwen3_prompt_embeds`."""

_KV_NAME = re.compile(r"klein.*[-_. ]kv(?![a-z0-9])")
"""Its tensors are klein's; only names tell."""

_ON_HOST = (
    "time_in.",
    "guidance_in.",
    "double_stream_modulation_",
    "single_stream_modulation.",
    "final_layer.adaLN_modulation.",
)


def _is_modulation(key: str) -> bool:
    return key.startswith(_ON_HOST)


TRANSFORMER = Part(
    name="transformer",
    title="FLUX.2 transformer",
    role="denoiser",
    folder="transformer",
    markers=(names.BFL_MARKER, names.DIFFUSERS_MARKER),
    canonical=names.canonical_transformer,
    bundle_prefix="model.diffusion_model.",
    gguf_architectures=("flux",),
    layout=BlockLayout(prefixes=("double_blocks.", "single_blocks."), on_host=_is_modulation),
    names_lora=names_lora,
)
QWEN3 = qwen3.qwen3_part(TEXT_LAYERS[-1])


class Flux2Model:
    """The text encoder, the transformer and the autoencoder, with weights."""

    def __init__(self, encoder: PromptEncoder, networks: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        transformer, autoencoder = networks["transformer"], networks["autoencoder"]
        assert isinstance(transformer, Flux2Transformer)
        assert isinstance(autoencoder, Flux2Autoencoder)
        self.denoiser, self.autoencoder = transformer, autoencoder
        self.text_encoders: Mapping[str, nn.Module] = {"qwen3": networks["qwen3"]}
        self._encoder = encoder
        self._dtype = dtype

    def encode(
        self,
        prompt: str,
        max_length: int,
        cancellation: CancellationCallback,
        pictures: Sequence[SeenPicture] = (),
    ) -> PromptStates:
        return self._encoder.encode(prompt, max_length, cancellation)

    def rows(self, times: Tensor, guidance: float | None, text: PromptStates) -> Tensor:
        strength = None if guidance is None else torch.full_like(times, guidance)
        return self.denoiser.modulation(times, strength, self._dtype)

    def channels(self, pixels: Tensor, repaint: Tensor, encode: PictureEncoder) -> Tensor:
        raise NotImplementedError("no variant draws from a picture")

    def positions(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        return self.denoiser.rope(text_tokens, grids)

    def velocity(self, inputs: StepInputs) -> Tensor:
        predicted = self.denoiser(inputs.image, inputs.text, inputs.rows, inputs.positions, inputs.caches)
        return predicted[:, : inputs.latents.shape[1]]


@dataclass(frozen=True)
class Flux2Architecture:
    """FLUX.2 at the sizes of one checkpoint."""

    sizes: Flux2Sizes

    @property
    def latents(self) -> PackedLatents:
        """A token is one latent of four times the autoencoder's channels; noise is drawn so."""
        return PackedLatents(4 * self.sizes.autoencoder.z_channels, scale=16, patch=1)

    @property
    def arithmetic(self) -> Arithmetic:
        flux = self.sizes.transformer
        block = 4 * flux.hidden_size**2 + 3 * flux.hidden_size * flux.mlp_hidden  # qkv, proj and the gated MLP
        return Arithmetic(
            hidden=flux.hidden_size,
            mlp_hidden=2 * flux.mlp_hidden,
            heads=flux.num_heads,
            head_dim=flux.head_dim,
            blocks=flux.depth + flux.depth_single_blocks,
            token_values=block * (flux.depth + flux.depth_single_blocks),
            matrix_values=block * (2 * flux.depth + flux.depth_single_blocks),
            decoder_channels=2 * self.sizes.autoencoder.ch,
        )

    def shapes(self) -> Mapping[str, Shapes]:
        return {
            "transformer": shapes_of(lambda: Flux2Transformer(self.sizes.transformer)),
            "autoencoder": autoencoder_shapes(self.sizes.autoencoder),
            "qwen3": qwen3.qwen3_shapes(self.sizes.qwen3),
        }

    def misfits(self) -> Collection[str]:
        flux, encoder = self.sizes.transformer, self.sizes.qwen3
        needs = {
            "the text states' width": (len(TEXT_LAYERS) * encoder.hidden_size, flux.context_in_dim),
            "a latent": (self.latents.channels, flux.in_channels),
        }
        found = [
            f"{what} is {has}, the transformer takes {takes}" for what, (has, takes) in needs.items() if has != takes
        ]
        if encoder.num_layers < TEXT_LAYERS[-1]:
            found.append(f"the text encoder has {encoder.num_layers} layers, {TEXT_LAYERS[-1]} are read")
        return found

    def lora_targets(self) -> Mapping[str, LoraTarget]:
        return lora_targets(self.sizes.transformer)

    @property
    def sight(self) -> None:
        return None

    @property
    def control(self) -> None:
        return None

    def widened(self, columns: int) -> Flux2Architecture:
        raise NotImplementedError("there are no control LoRAs")

    def build(self, tokenizers: Mapping[str, Path]) -> Mapping[str, nn.Module]:
        return {
            "transformer": Flux2Transformer(self.sizes.transformer),
            "autoencoder": Flux2Autoencoder(self.sizes.autoencoder),
            "qwen3": qwen3.build_qwen3(self.sizes.qwen3),
        }

    def model(
        self, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Path], dtype: torch.dtype
    ) -> Flux2Model:
        states = qwen3.Qwen3States(networks["qwen3"], TEXT_LAYERS)
        tokenizer = Qwen2Tokenizer.from_pretrained(tokenizers["tokenizer"])
        return Flux2Model(PromptEncoder(states, tokenizer, TEMPLATE, to_full_length, dtype), networks, dtype)


class Flux2Family:
    """4B and 9B differ in width; whether one is distilled, only its folder or its name tells."""

    title = "FLUX.2 [klein]"
    parts = (TRANSFORMER, AUTOENCODER, QWEN3)
    tokenizers: Mapping[str, tuple[str, ...]] = {"tokenizer": ("tokenizer.json", "vocab.json")}
    pipelines = ("Flux2KleinPipeline",)
    sizes = tuple(SIZES)

    def variant(self, denoiser: Component, told: Told) -> Variant:
        source = denoiser.reader.source
        flux = dimensions.transformer_params(denoiser.reader, denoiser.config)
        if flux.guidance_embed:
            raise CheckpointError(f"{source}: is FLUX.2 [dev], which fluxserve does not draw with; use FLUX.2 [klein]")
        if _KV_NAME.search(told.name.lower()):
            raise CheckpointError(
                f"{source}: is FLUX.2 [klein] KV, which keeps references from its first step; "
                "fluxserve does not draw with it; use FLUX.2-klein-9B"
            )
        if told.variant is not None:
            return named_variant(VARIANTS, told.variant, source)
        distilled = told.flags.get("is_distilled", "base" not in told.name.lower())
        large = flux.hidden_size == KLEIN_9B.hidden_size
        return VARIANTS[("klein" if distilled else "klein-base") + ("-9b" if large else "")]

    def architecture(self, components: Mapping[str, Component]) -> Flux2Architecture:
        transformer, autoencoder, encoder = (components[part.name] for part in self.parts)
        return Flux2Architecture(
            Flux2Sizes(
                transformer=dimensions.transformer_params(transformer.reader, transformer.config),
                autoencoder=autoencoder_params(autoencoder.reader, autoencoder.config),
                qwen3=qwen3.qwen3_params(encoder.reader, encoder.config),
            )
        )

    def synthetic(self, size: str, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
        return synthetic_model(SIZES[size], variant, layout, packing)


FLUX2_FAMILY = Flux2Family()

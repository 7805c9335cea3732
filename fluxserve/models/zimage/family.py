"""Z-Image behind the seam: Turbo and base. Text is not padded, so that two prompts may differ in length."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from fluxserve.models.companions import qwen3
from fluxserve.models.companions.flux1_autoencoder import AUTOENCODER, Autoencoder, autoencoder_shapes
from fluxserve.models.companions.qwen3_prompts import PromptEncoder, unpadded
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
from fluxserve.models.lora_target import LoraTarget
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel
from fluxserve.models.variant import Variant, named_variant
from fluxserve.models.zimage import dimensions, names
from fluxserve.models.zimage.lora_names import lora_targets, names_lora
from fluxserve.models.zimage.sizes import SIZES, TEXT_LAYER, ZImageSizes
from fluxserve.models.zimage.synthetic import synthetic_model
from fluxserve.models.zimage.transformer import ZImageTransformer
from fluxserve.models.zimage.variants import VARIANTS
from fluxserve.tensors.reader import Shapes

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen3's chat template without a thought, as huggingface/diffusers `ZImagePipeline._encode_prompt` makes it."""

_PUBLISHED_NAME = re.compile(r"(.*/)?z[-_. ]?image")
"""What begins so and does not say Turbo is base; what people make of either, and call otherwise, is mostly Turbo."""


def _is_modulation(key: str) -> bool:
    return key.startswith("t_embedder.") or ".adaLN_modulation." in key


TRANSFORMER = Part(
    name="transformer",
    title="Z-Image transformer",
    role="denoiser",
    folder="transformer",
    markers=(names.MARKER,),
    canonical=names.canonical_transformer,
    bundle_prefix="model.diffusion_model.",
    gguf_architectures=("lumina2",),
    layout=BlockLayout(prefixes=("noise_refiner.", "context_refiner.", "layers."), on_host=_is_modulation),
    names_lora=names_lora,
)
QWEN3 = qwen3.qwen3_part(TEXT_LAYER)


class ZImageModel:
    """The text encoder, the transformer and the autoencoder, with weights."""

    def __init__(self, encoder: PromptEncoder, networks: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        transformer, autoencoder = networks["transformer"], networks["autoencoder"]
        assert isinstance(transformer, ZImageTransformer)
        assert isinstance(autoencoder, Autoencoder)
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
        return self.denoiser.modulation(times, self._dtype)

    def channels(self, pixels: Tensor, repaint: Tensor, encode: PictureEncoder) -> Tensor:
        raise NotImplementedError("no variant draws from a picture")

    def positions(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        ((h, w),) = grids
        return self.denoiser.rope(text_tokens, h // 2, w // 2)

    def velocity(self, inputs: StepInputs) -> Tensor:
        return -self.denoiser(inputs.image, inputs.text, inputs.rows, inputs.positions, inputs.caches)


@dataclass(frozen=True)
class ZImageArchitecture:
    """Z-Image at the sizes of one checkpoint."""

    sizes: ZImageSizes

    @property
    def latents(self) -> PackedLatents:
        return PackedLatents(self.sizes.autoencoder.z_channels, channels_last=True)

    @property
    def arithmetic(self) -> Arithmetic:
        """Image and text pass the joint blocks and refiners of their own."""
        params = self.sizes.transformer
        block = 4 * params.hidden_size**2 + 3 * params.hidden_size * params.mlp_hidden  # qkv, out and the gated MLP
        return Arithmetic(
            hidden=params.hidden_size,
            mlp_hidden=params.mlp_hidden,
            heads=params.num_heads,
            head_dim=params.head_dim,
            blocks=params.depth + params.refiner_depth,
            token_values=block * (params.depth + params.refiner_depth),
            matrix_values=block * (params.depth + 2 * params.refiner_depth),
            decoder_channels=2 * self.sizes.autoencoder.ch,
        )

    def shapes(self) -> Mapping[str, Shapes]:
        return {
            "transformer": shapes_of(lambda: ZImageTransformer(self.sizes.transformer)),
            "autoencoder": autoencoder_shapes(self.sizes.autoencoder),
            "qwen3": qwen3.qwen3_shapes(self.sizes.qwen3),
        }

    def misfits(self) -> Collection[str]:
        params, encoder = self.sizes.transformer, self.sizes.qwen3
        needs = {
            "a text state": (encoder.hidden_size, params.context_in_dim),
            "a packed latent": (4 * self.sizes.autoencoder.z_channels, params.in_channels),
        }
        found = [
            f"{what} is {has}, the transformer takes {takes}" for what, (has, takes) in needs.items() if has != takes
        ]
        if encoder.num_layers < TEXT_LAYER:
            found.append(f"the text encoder has {encoder.num_layers} layers, {TEXT_LAYER} are read")
        return found

    @property
    def sight(self) -> None:
        return None

    @property
    def control(self) -> None:
        return None

    def widened(self, columns: int) -> ZImageArchitecture:
        raise NotImplementedError("there are no control LoRAs")

    def lora_targets(self) -> Mapping[str, LoraTarget]:
        return lora_targets(self.sizes.transformer)

    def build(self, tokenizers: Mapping[str, Path]) -> Mapping[str, nn.Module]:
        return {
            "transformer": ZImageTransformer(self.sizes.transformer),
            "autoencoder": Autoencoder(self.sizes.autoencoder),
            "qwen3": qwen3.build_qwen3(self.sizes.qwen3),
        }

    def model(
        self, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Path], dtype: torch.dtype
    ) -> ZImageModel:
        states = qwen3.Qwen3States(networks["qwen3"], (TEXT_LAYER,))
        tokenizer = Qwen2Tokenizer.from_pretrained(tokenizers["tokenizer"])
        return ZImageModel(PromptEncoder(states, tokenizer, TEMPLATE, unpadded, dtype), networks, dtype)


class ZImageFamily:
    """Turbo and base have the same tensors: only a name tells them apart. What no name tells is Turbo."""

    title = "Z-Image"
    parts = (TRANSFORMER, AUTOENCODER, QWEN3)
    tokenizers: Mapping[str, tuple[str, ...]] = {"tokenizer": ("tokenizer.json", "vocab.json")}
    pipelines = ("ZImagePipeline",)
    sizes = tuple(SIZES)

    def variant(self, denoiser: Component, told: Told) -> Variant:
        if told.variant is not None:
            return named_variant(VARIANTS, told.variant, denoiser.reader.source)
        name = told.name.lower()
        base = "base" in name or (_PUBLISHED_NAME.match(name) and "turbo" not in name)
        return VARIANTS["zimage" if base else "zimage-turbo"]

    def architecture(self, components: Mapping[str, Component]) -> ZImageArchitecture:
        transformer, autoencoder, encoder = (components[part.name] for part in self.parts)
        return ZImageArchitecture(
            ZImageSizes(
                transformer=dimensions.transformer_params(transformer.reader, transformer.config),
                autoencoder=autoencoder_params(autoencoder.reader, autoencoder.config),
                qwen3=qwen3.qwen3_params(encoder.reader, encoder.config),
            )
        )

    def synthetic(self, size: str, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
        return synthetic_model(SIZES[size], variant, layout, packing)


ZIMAGE_FAMILY = ZImageFamily()

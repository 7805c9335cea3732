"""FLUX.3 image klein behind the seam: distilled and base."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from fluxserve.errors import CheckpointError
from fluxserve.models.companions import qwen3, qwen3_vl
from fluxserve.models.companions.flux2_autoencoder import AUTOENCODER, Flux2Autoencoder, autoencoder_shapes
from fluxserve.models.companions.qwen3_prompts import PromptEncoder
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
from fluxserve.models.flux3 import dimensions, names
from fluxserve.models.flux3.lora_names import lora_targets, names_lora
from fluxserve.models.flux3.sizes import SIZES, TEXT_LAYERS, Flux3Sizes
from fluxserve.models.flux3.synthetic import synthetic_model
from fluxserve.models.flux3.transformer import Flux3Transformer
from fluxserve.models.flux3.variants import VARIANTS
from fluxserve.models.lora_target import LoraTarget
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel
from fluxserve.models.variant import Variant, named_variant
from fluxserve.tensors.reader import Shapes

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen3-VL's chat template; what pads it goes to the transformer too, as in huggingface/diffusers
`modular_pipelines/flux3/encoders.py` `_get_qwen3_vl_prompt_embeds`."""
PADDING_MULTIPLE = 80
PADDING_POSITION = 1

_ON_HOST = (
    "time_in.",
    "ref_time_in.",
    "early_stream_modulations.",
    "single_stream_modulations.",
    "final_layer.image.adaLN_modulation.",
)


def _is_modulation(key: str) -> bool:
    return key.startswith(_ON_HOST)


def to_multiples(tokens: int, most: int) -> int:
    return min(-(-tokens // PADDING_MULTIPLE) * PADDING_MULTIPLE, most)


_BLOCKS = ("content_mode_blocks.image.", "content_mode_blocks.image_cond.", "txt_mode_blocks.", "single_blocks.")

TRANSFORMER = Part(
    name="transformer",
    title="FLUX.3 transformer",
    role="denoiser",
    folder="transformer",
    markers=(names.BFL_MARKER, names.DIFFUSERS_MARKER),
    canonical=names.canonical_transformer,
    bundle_prefix="model.diffusion_model.",
    gguf_architectures=("flux",),
    layout=BlockLayout(prefixes=_BLOCKS, on_host=_is_modulation),
    names_lora=names_lora,
)
QWEN3_VL = qwen3_vl.qwen3_vl_part(TEXT_LAYERS[-1])


class Flux3Model:
    """The text encoder, the transformer and the autoencoder, with weights."""

    def __init__(self, encoder: PromptEncoder, networks: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        transformer, autoencoder = networks["transformer"], networks["autoencoder"]
        assert isinstance(transformer, Flux3Transformer)
        assert isinstance(autoencoder, Flux2Autoencoder)
        self.denoiser, self.autoencoder = transformer, autoencoder
        self.text_encoders: Mapping[str, nn.Module] = {"qwen3_vl": networks["qwen3_vl"]}
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
        return self.denoiser.modulation(times, F.pad(times[1:], (0, 1)), self._dtype)

    def channels(self, pixels: Tensor, repaint: Tensor, encode: PictureEncoder) -> Tensor:
        raise NotImplementedError("no variant draws from a picture")

    def positions(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        return self.denoiser.rope(text_tokens, grids)

    def velocity(self, inputs: StepInputs) -> Tensor:
        return self.denoiser(
            inputs.latents, inputs.references, inputs.text, inputs.rows, inputs.positions, inputs.caches
        )


@dataclass(frozen=True)
class Flux3Architecture:
    """FLUX.3 image klein at the sizes of one checkpoint."""

    sizes: Flux3Sizes

    @property
    def latents(self) -> PackedLatents:
        """A token is one latent of four times the autoencoder's channels; noise is drawn so."""
        return PackedLatents(4 * self.sizes.autoencoder.z_channels, scale=16, patch=1)

    @property
    def arithmetic(self) -> Arithmetic:
        """Each token passes the blocks of its own mode and the joint ones."""
        params = self.sizes.transformer
        block = 4 * params.hidden_size**2 + 3 * params.hidden_size * params.mlp_hidden  # q, k, v, out and the gated MLP
        return Arithmetic(
            hidden=params.hidden_size,
            mlp_hidden=2 * params.mlp_hidden,
            heads=params.num_heads,
            head_dim=params.head_dim,
            blocks=params.depth + params.depth_single_blocks,
            token_values=block * (params.depth + params.depth_single_blocks),
            matrix_values=block * (3 * params.depth + params.depth_single_blocks),
            decoder_channels=2 * self.sizes.autoencoder.ch,
        )

    def shapes(self) -> Mapping[str, Shapes]:
        return {
            "transformer": shapes_of(lambda: Flux3Transformer(self.sizes.transformer)),
            "autoencoder": autoencoder_shapes(self.sizes.autoencoder),
            "qwen3_vl": qwen3.qwen3_shapes(self.sizes.qwen3_vl),
        }

    def misfits(self) -> Collection[str]:
        params, encoder = self.sizes.transformer, self.sizes.qwen3_vl
        needs = {
            "the text states' width": (len(TEXT_LAYERS) * encoder.hidden_size, params.context_in_dim),
            "a latent": (self.latents.channels, params.in_channels),
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

    def widened(self, columns: int) -> Flux3Architecture:
        raise NotImplementedError("there are no control LoRAs")

    def build(self, tokenizers: Mapping[str, Path]) -> Mapping[str, nn.Module]:
        return {
            "transformer": Flux3Transformer(self.sizes.transformer),
            "autoencoder": Flux2Autoencoder(self.sizes.autoencoder),
            "qwen3_vl": qwen3.build_qwen3(self.sizes.qwen3_vl, qwen3_vl.ROPE_THETA),
        }

    def model(
        self, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Path], dtype: torch.dtype
    ) -> Flux3Model:
        states = qwen3.Qwen3States(networks["qwen3_vl"], TEXT_LAYERS, PADDING_POSITION)
        tokenizer = Qwen2Tokenizer.from_pretrained(tokenizers["tokenizer"])
        return Flux3Model(PromptEncoder(states, tokenizer, TEMPLATE, to_multiples, dtype), networks, dtype)


class Flux3Family:
    """Its tensors tell whether one is distilled: a flow map reads where each step leads."""

    title = "FLUX.3 image klein"
    parts = (TRANSFORMER, AUTOENCODER, QWEN3_VL)
    tokenizers: Mapping[str, tuple[str, ...]] = {"tokenizer": ("tokenizer.json", "vocab.json")}
    pipelines = ("Flux3DistilledModularPipeline", "Flux3ModularPipeline")
    sizes = tuple(SIZES)

    def variant(self, denoiser: Component, told: Told) -> Variant:
        distilled = dimensions.transformer_params(denoiser.reader, denoiser.config).flow_map
        own = VARIANTS["flux3-klein" if distilled else "flux3-klein-base"]
        if told.variant is None or named_variant(VARIANTS, told.variant, denoiser.reader.source) is own:
            return own
        raise CheckpointError(f"{denoiser.reader.source}: is {own.name} by its tensors, not {told.variant}")

    def architecture(self, components: Mapping[str, Component]) -> Flux3Architecture:
        transformer, autoencoder, encoder = (components[part.name] for part in self.parts)
        return Flux3Architecture(
            Flux3Sizes(
                transformer=dimensions.transformer_params(transformer.reader, transformer.config),
                autoencoder=autoencoder_params(autoencoder.reader, autoencoder.config),
                qwen3_vl=qwen3.qwen3_params(encoder.reader, encoder.config),
            )
        )

    def synthetic(self, size: str, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
        return synthetic_model(SIZES[size].of(variant), variant, layout, packing)


FLUX3_FAMILY = Flux3Family()

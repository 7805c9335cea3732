"""FLUX.1 behind the seam: schnell, dev, Krea, Kontext and the demo."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
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
    PictureEncoder,
    PromptStates,
    SeenPicture,
    Sight,
    StepInputs,
    Told,
)
from fluxserve.models.flux1 import dimensions, names, redux
from fluxserve.models.flux1.lora_names import lora_targets, names_lora, norm_names
from fluxserve.models.flux1.redux import REDUX, SIGLIP, PictureReader, ReduxParams, picture_reader, redux_params
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import INPUT_WIDTHS, SIZES, ModelSizes, picture_use
from fluxserve.models.flux1.synthetic import synthetic_model
from fluxserve.models.flux1.text import names as text_names
from fluxserve.models.flux1.text.configs import clip_config, t5_config
from fluxserve.models.flux1.text.encoders import TextEncoders, load_t5_tokenizer
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.models.flux1.variants import PIPELINES, VARIANTS, dev_variant
from fluxserve.models.lora_target import ControlTargets, LoraTarget
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.sizes import SizeReader
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel
from fluxserve.models.variant import Variant, named_variant
from fluxserve.request import PictureUse
from fluxserve.tensors.reader import Shapes

IMAGE_INPUT = "img_in"
MASK_SIDE = 8
"""Pixels a side of the squares of a mask that are one latent's channels."""

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

    def __init__(
        self,
        encoders: TextEncoders,
        transformer: FluxTransformer,
        autoencoder: Autoencoder,
        reader: PictureReader | None,
    ) -> None:
        self.reader = reader
        self.denoiser = transformer
        self.autoencoder = autoencoder
        self.text_encoders: Mapping[str, nn.Module] = {"t5": encoders.t5, "clip": encoders.clip}
        self.encoders = encoders

    def encode(
        self,
        prompt: str,
        max_length: int,
        cancellation: CancellationCallback,
        pictures: Sequence[SeenPicture] = (),
    ) -> PromptStates:
        """Pictures without a prompt stand behind zeros, as in diffusers' `FluxPriorReduxPipeline`."""
        if not pictures:
            return self.encoders.encode(prompt, max_length, cancellation)
        assert self.reader is not None
        text = self._text_beside(prompt, max_length, cancellation)
        strength = sum(picture.weight for picture in pictures)
        seen = self.reader.read(pictures, cancellation).to(text.states)
        assert text.pooled is not None
        return replace(text, states=torch.cat([strength * text.states, seen]), pooled=strength * text.pooled)

    def _text_beside(self, prompt: str, max_length: int, cancellation: CancellationCallback) -> PromptStates:
        if prompt.strip():
            return self.encoders.encode(prompt, max_length, cancellation)
        flux, weight = self.denoiser.params, self.denoiser.img_in.weight
        states = torch.zeros(max_length, flux.context_in_dim, dtype=self.encoders.dtype, device=weight.device)
        return PromptStates(states, states.new_zeros(flux.vec_in_dim), 0, 0)

    def rows(self, times: Tensor, guidance: float | None, text: PromptStates) -> Tensor:
        """A quarter of the transformer's weights, evaluated where they lie, so that no step touches them."""
        assert text.pooled is not None
        strength = None if guidance is None else torch.full_like(times, guidance)
        pooled = text.pooled.to(self.denoiser.time_in.in_layer.bias.device)
        return self.denoiser.modulation(times, strength, pooled.expand(len(times), -1)).cpu()

    def channels(self, pixels: Tensor, repaint: Tensor, encode: PictureEncoder) -> Tensor:
        """A map's latents; or those of the picture without its masked part, and the mask at full resolution.

        Follows black-forest-labs/flux `src/flux/sampling.py` `prepare_control` and `prepare_fill`.
        """
        if self.denoiser.params.picture == "control":
            return encode(pixels)
        mask = (repaint >= 0.5).float()
        squares = PackedLatents(MASK_SIDE**2).pack(F.pixel_unshuffle(mask[None], MASK_SIDE))
        kept = encode(pixels * (1 - mask))
        return torch.cat([kept, squares.to(kept.device)], dim=-1)

    def positions(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        return self.denoiser.rope(text_tokens, [(h // 2, w // 2) for h, w in grids])

    def velocity(self, inputs: StepInputs) -> Tensor:
        predicted = self.denoiser(inputs.image, inputs.text, inputs.rows, inputs.positions, inputs.caches)
        return predicted[:, : inputs.latents.shape[1]]


@dataclass(frozen=True)
class Flux1Architecture:
    """FLUX.1 at the sizes of one checkpoint. redux: None without an image encoder."""

    sizes: ModelSizes
    redux: ReduxParams | None = None

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
            **(redux.shapes(self.redux) if self.redux else {}),
        }

    def misfits(self) -> Collection[str]:
        flux = self.sizes.transformer
        needs = [
            ("T5's width", self.sizes.t5.d_model, "the transformer", flux.context_in_dim),
            ("CLIP's width", self.sizes.clip.hidden_size, "the transformer", flux.vec_in_dim),
            ("a packed latent", 4 * self.sizes.autoencoder.z_channels, "the transformer", flux.out_channels),
        ]
        if self.redux:
            needs.append(("Redux's width", self.redux.width, "the transformer", flux.context_in_dim))
            needs.append(("SigLIP's width", self.redux.siglip.hidden_size, "Redux", self.redux.image_width))
        return [f"{what} is {has}, {taker} takes {takes}" for what, has, taker, takes in needs if has != takes]

    def lora_targets(self) -> Mapping[str, LoraTarget]:
        return lora_targets(self.sizes)

    @property
    def sight(self) -> Sight | None:
        return Sight(self.redux.siglip.image_size, self.redux.siglip.patches) if self.redux else None

    @property
    def control(self) -> ControlTargets:
        return ControlTargets(IMAGE_INPUT, norm_names(self.sizes.transformer))

    def widened(self, columns: int) -> Flux1Architecture:
        return replace(
            self, sizes=replace(self.sizes, transformer=replace(self.sizes.transformer, in_channels=columns))
        )

    def build(self, tokenizers: Mapping[str, Path]) -> Mapping[str, nn.Module]:
        clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers["tokenizer"])
        return {
            "transformer": FluxTransformer(self.sizes.transformer),
            "autoencoder": Autoencoder(self.sizes.autoencoder),
            "t5": T5EncoderModel(t5_config(self.sizes.t5)),
            "clip": CLIPTextModel(clip_config(self.sizes.clip, clip_tokenizer)),
            **(redux.build(self.redux) if self.redux else {}),
        }

    def model(
        self, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Path], dtype: torch.dtype
    ) -> Flux1Model:
        transformer, autoencoder, t5, clip = (networks[n] for n in ("transformer", "autoencoder", "t5", "clip"))
        assert isinstance(transformer, FluxTransformer)
        assert isinstance(autoencoder, Autoencoder)
        clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers["tokenizer"])
        t5_tokenizer = load_t5_tokenizer(tokenizers["tokenizer_2"])
        encoders = TextEncoders(t5, clip, t5_tokenizer, clip_tokenizer, dtype)
        reader = picture_reader(networks) if self.redux else None
        return Flux1Model(encoders, transformer, autoencoder, reader)


class Flux1Family:
    """Models are told apart by whether they take guidance; what the files do not tell, they may name."""

    title = "FLUX.1"
    parts = (TRANSFORMER, AUTOENCODER, T5, CLIP, SIGLIP, REDUX)
    tokenizers: Mapping[str, tuple[str, ...]] = {
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "spiece.model"),
    }
    pipelines = tuple(PIPELINES)
    sizes = tuple(SIZES)

    def variant(self, denoiser: Component, told: Told) -> Variant:
        source, sizes = denoiser.reader.source, SizeReader(denoiser.reader, {})
        columns, own = sizes.shape(f"{IMAGE_INPUT}.weight", 2)[1], sizes.shape("final_layer.linear.weight", 2)[0]
        use = picture_use(columns, own)
        if use is None:
            widths = ", ".join(str(times * own) for times in INPUT_WIDTHS.values())
            raise CheckpointError(
                f"{source}: is a model with {columns} input channels; those that fluxserve knows have {widths}"
            )
        if told.pipeline is not None and PIPELINES[told.pipeline] != use:
            raise CheckpointError(f"{source}: has {columns} input channels, those of no {told.pipeline}")
        guided = dimensions.takes_guidance(denoiser.reader)
        usual = _usual_name(use, guided, told)
        variant = named_variant(VARIANTS, usual if told.variant is None else told.variant, source)
        if variant.picture != use:
            raise CheckpointError(f"{source}: has {columns} input channels, and so is not of variant {variant.name!r}")
        if guided != (variant.guidance_scale is not None):
            has = "guidance" if guided else "no guidance"
            raise CheckpointError(f"{source}: takes {has}, and so is not of variant {variant.name!r}")
        return variant

    def architecture(self, components: Mapping[str, Component]) -> Flux1Architecture:
        transformer, autoencoder, t5, clip = (components[name] for name in ("transformer", "autoencoder", "t5", "clip"))
        siglip, embedder = components.get("siglip"), components.get("redux")
        return Flux1Architecture(
            redux=redux_params(siglip.reader, siglip.config, embedder.reader) if siglip and embedder else None,
            sizes=ModelSizes(
                transformer=dimensions.transformer_params(transformer.reader, transformer.config),
                autoencoder=autoencoder_params(autoencoder.reader, autoencoder.config),
                t5=dimensions.t5_params(t5.reader, t5.config),
                clip=dimensions.clip_params(clip.reader, clip.config),
            ),
        )

    def synthetic(self, size: str, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
        return synthetic_model(SIZES[size], variant, layout, packing)


def _usual_name(use: PictureUse, guided: bool, told: Told) -> str:
    """Canny's and Depth's files are alike."""
    if use == "fill":
        return "fill"
    if use == "control":
        return "depth" if "depth" in told.name.lower() else "canny"
    return dev_variant(told.pipeline, told.name) if guided else "schnell"


FLUX1_FAMILY = Flux1Family()

"""The seam between a model family and all that serves it: what a family tells of its files, and what it can compute.

Three objects, each made from the one before: a `Family` knows names and variants, an `Architecture` is the family at
the sizes of one checkpoint, and a `Model` is its networks with weights. Pipeline, placement and weights know these
three, never a family. Shape letters: B batch, T text tokens, I image tokens, L = T + I, H heads, D head dim,
M modulation values of one step, C latent channels, F values of an image token, h w latent size, height width pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fluxserve.models.lora_target import ControlTargets, LoraTarget
from fluxserve.models.sizes import Config
from fluxserve.models.step_cache import BlockCache
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel
from fluxserve.models.variant import Variant
from fluxserve.tensors.reader import Shapes, TensorReader

Role = Literal["denoiser", "text_encoder", "autoencoder", "image_encoder"]
"""A family's image encoders are no part of a model unless they are asked for."""
CancellationCallback = Callable[[], None]
"""Called from inside long forward passes; what it raises ends them."""


PictureEncoder = Callable[[Tensor], Tensor]
"""(3, height, width) pixels in [-1, 1] to (I, F) float32 image tokens, by the autoencoder."""


def _never(_: str) -> bool:
    return False


@dataclass(frozen=True)
class BlockLayout:
    """How a network is cut into blocks that run one after the other, and can therefore stream through the device.

    prefixes: of the blocks' tensors, in the order in which the blocks run; a number follows each. on_host: whether a
    tensor is used before the first step alone (`Model.rows`), and so stays on the host. tables: tensors that are looked
    up on the host, with the further names that the module gives to each.
    """

    prefixes: tuple[str, ...]
    on_host: Callable[[str], bool] = _never
    tables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Part:
    """One network of a family; families that share a network share the object.

    name: unique within the family. title: for people. folder: in diffusers' layout. markers: names of tensors, any of
    which tells the network from others. canonical: its reader under the names of the network's module, from any
    spelling. bundle_prefix: before its names in a file that holds several networks, or this one alone;
    bundle_aliases: what other tools write there; bundle_ignored: names in such a file that belong to it and are not
    used. gguf_architectures: what GGUF files of it call themselves. layout: None for a network that is placed as a
    whole. float16: whether it computes in float16 without overflow. tables: endings of matrices that are looked up, not
    multiplied with. names_lora: whether a module of a LoRA file may be one of the family's, whatever its sizes. reads:
    whether a tensor of its files, under any of its names, is used; None where all are.
    """

    name: str
    title: str
    role: Role
    folder: str
    markers: tuple[str, ...]
    canonical: Callable[[TensorReader], TensorReader]
    bundle_prefix: str
    bundle_aliases: tuple[str, ...] = ()
    bundle_ignored: tuple[str, ...] = ()
    gguf_architectures: tuple[str, ...] = ()
    layout: BlockLayout | None = None
    float16: bool = True
    tables: tuple[str, ...] = ()
    names_lora: Callable[[str], bool] = _never
    reads: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Component:
    """One network as found: its tensors under canonical names, and the integers of its config."""

    reader: TensorReader
    config: Config


@dataclass(frozen=True)
class Told:
    """What files say of a model beside its tensors.

    pipeline: the class that its model_index.json names. variant: a row of a family's variants, where they name one.
    flags: the booleans of its model_index.json. name: of its folder, file or repository.
    """

    pipeline: str | None = None
    variant: str | None = None
    flags: Mapping[str, bool] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Arithmetic:
    """What one step costs, by sizes alone.

    hidden, mlp_hidden, heads, head_dim: of a block. blocks: how many attend. token_values: of the matrices that one
    token passes in a step; matrix_values: of all matrices in the blocks. decoder_channels: of the autoencoder's widest
    full-size map.
    """

    hidden: int
    mlp_hidden: int
    heads: int
    head_dim: int
    blocks: int
    token_values: int
    matrix_values: int
    decoder_channels: int


@dataclass(frozen=True)
class Sight:
    """What an image encoder sees. side: pixels of the square. tokens: those that then stand behind the text's."""

    side: int
    tokens: int


@dataclass(frozen=True, eq=False)
class SeenPicture:
    """A picture read as a prompt is. pixels: (3, side, side) float32 in [-1, 1]. weight: how strongly it acts."""

    pixels: Tensor
    weight: float


@dataclass(frozen=True)
class PromptStates:
    """One encoded prompt, in the compute dtype. states: (T, width). pooled: (width,), None where the family takes none.

    tokens: text tokens used, end mark included. prompt_tokens: those that the whole prompt has; more than `tokens` when
    it was cut.
    """

    states: Tensor
    pooled: Tensor | None
    tokens: int
    prompt_tokens: int

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + (self.pooled.nbytes if self.pooled is not None else 0)


@dataclass(frozen=True)
class StepInputs:
    """What the network takes at one step; each sample of the batch may be at a time of its own.

    latents: (B, I, F) image tokens. text: (B, T, width) states. rows: (B, M) of this time, see `Model.rows`.
    positions: what `Model.positions` gave for these sizes. references: (B, R, F) tokens of pictures that stand in the
    sequence behind the image's, and are cut from what is predicted. channels: (B, I, C') further values of each image
    token, the same at every step. caches: of each sample, for a network that can skip blocks; None: all run.
    """

    latents: Tensor
    text: Tensor
    rows: Tensor
    positions: Tensor
    references: Tensor | None = None
    channels: Tensor | None = None
    caches: Sequence[BlockCache | None] | None = None

    @property
    def image(self) -> Tensor:
        """(B, I + R, F + C'): what the network takes as its image."""
        own = self.latents if self.channels is None else torch.cat([self.latents, self.channels], dim=-1)
        return own if self.references is None else torch.cat([own, self.references], dim=1)


class LatentSpace(Protocol):
    """Between pixels, latents and image tokens. scale: pixels a side of a latent; token_area: pixels of a token."""

    @property
    def channels(self) -> int: ...
    @property
    def scale(self) -> int: ...
    @property
    def token_area(self) -> int: ...

    def noise(self, seed: int, size: tuple[int, int]) -> Tensor:
        """(I, F) float32 tokens of standard normal noise for a latent size (h, w), on the CPU: the same everywhere."""
        ...

    def pack(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) to (..., I, F)."""
        ...

    def unpack(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(..., I, F) to (..., C, h, w)."""
        ...


class Autoencoder(Protocol):
    """An `nn.Module` from pixels to latents and back. stages: modules before which it may be stopped."""

    @property
    def stages(self) -> Iterable[nn.Module]: ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, height, width) in [-1, 1] to (B, C, h, w)."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to (B, 3, height, width), about [-1, 1] but not clamped."""
        ...

    def float(self) -> Autoencoder: ...


class Model(Protocol):
    """The networks of a checkpoint, with weights, and what they compute. Used by one thread at a time."""

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def text_encoders(self) -> Mapping[str, nn.Module]: ...
    @property
    def autoencoder(self) -> Autoencoder: ...

    def encode(
        self,
        prompt: str,
        max_length: int,
        cancellation: CancellationCallback,
        pictures: Sequence[SeenPicture] = (),
    ) -> PromptStates:
        """max_length: the most text tokens. cancellation: called before every block of a large encoder.

        pictures: for the image encoder, whose tokens stand behind the text's; none where there is no such encoder.
        """
        ...

    def rows(self, times: Tensor, guidance: float | None, text: PromptStates) -> Tensor:
        """What depends on time, guidance and the pooled prompt alone, for all steps at once: (steps, M) on the host.

        times: (steps,) float32 on the CPU: where each step starts; it leads to the next one's start, the last to 0.
        guidance: None for models without.
        """
        ...

    def channels(self, pixels: Tensor, repaint: Tensor, encode: PictureEncoder) -> Tensor:
        """(I, C') float32 further values of each image token, made of a picture; asked of variants that draw from one.

        pixels: (3, height, width) float32 in [-1, 1]. repaint: (height, width) float32 in 0..1, 1 = repaint.
        """
        ...

    def positions(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Where tokens are, for text, the latent size (h, w) and those of references; the same at every step."""
        ...

    def velocity(self, inputs: StepInputs) -> Tensor:
        """(B, I, F): noise minus picture, as predicted. Follow it with a solver."""
        ...


class Architecture(Protocol):
    """A family at the sizes of one checkpoint. Nothing here reads weights."""

    @property
    def latents(self) -> LatentSpace: ...
    @property
    def arithmetic(self) -> Arithmetic: ...

    def shapes(self) -> Mapping[str, Shapes]:
        """Every tensor of every part, by the part's name, under canonical names."""
        ...

    def misfits(self) -> Collection[str]:
        """Which networks do not fit together, in words; empty when all do."""
        ...

    def lora_targets(self) -> Mapping[str, LoraTarget]:
        """Every name that a LoRA file may give to a Linear of these networks."""
        ...

    @property
    def sight(self) -> Sight | None:
        """What the image encoder sees; None without one."""
        ...

    @property
    def control(self) -> ControlTargets | None:
        """What LoRAs change that make a control model of this one; None where there are none."""
        ...

    def widened(self, columns: int) -> Architecture:
        """With so many values an image token for the denoiser to take; asked of those that have `control`."""
        ...

    def build(self, tokenizers: Mapping[str, Path]) -> Mapping[str, nn.Module]:
        """The networks by part, to be called on the meta device."""
        ...

    def model(self, networks: Mapping[str, nn.Module], tokenizers: Mapping[str, Path], dtype: torch.dtype) -> Model:
        """The built networks, which have their weights by now, at work. dtype: what the denoiser computes in."""
        ...


class Family(Protocol):
    """One row of the registry. parts: of a complete model, and image encoders.

    tokenizers: folders, and the files one of which each needs. pipelines: the classes that a model_index.json may name.
    sizes: of the random models that it can make.
    """

    @property
    def title(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def tokenizers(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def pipelines(self) -> tuple[str, ...]: ...
    @property
    def sizes(self) -> Collection[str]: ...

    def variant(self, denoiser: Component, told: Told) -> Variant:
        """Which row of the variants it is.

        Raises:
            CheckpointError: the name is unknown, or the network draws from what is not supported.
        """
        ...

    def architecture(self, components: Mapping[str, Component]) -> Architecture:
        """The sizes of all parts. Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
        ...

    def synthetic(self, size: str, variant: str, layout: Layout, packing: Packing) -> SyntheticModel:
        """What a model of random weights consists of. size: one of `sizes`."""
        ...

"""FLUX.1 Redux: a picture as further text tokens, by a SigLIP image encoder and two layers of its own.

Follows black-forest-labs/flux `src/flux/modules/image_embedders.py` and `src/flux/sampling.py` `prepare_redux`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from fluxserve.models.cancellation import CancellationPoint
from fluxserve.models.family import CancellationCallback, Part, SeenPicture
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.tensors.reader import Mapped, Shapes, TensorReader, renamed

PREFIX, HEAD = "vision_model.", "head."
"""Published files prefix SigLIP's names; its head sums a picture up in one vector, which is not used here."""
HEAD_DIM = 72
"""Of google/siglip-so400m-patch14-384, where no config tells how many heads there are."""
IMAGE_SIDES = {27 * 14: 384}
"""Pixels that patches do not cover, where no config tells: so400m's 27 x 27 patches of 14 leave 6."""
LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class SiglipParams:
    """Sizes of a SigLIP image encoder. image_size: pixels a side of the square that it sees."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    image_size: int

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class ReduxParams:
    """Sizes of both networks. width: of a text token. hidden: between the two layers."""

    siglip: SiglipParams
    image_width: int
    hidden: int
    width: int


class ReduxEmbedder(nn.Module):
    """From SigLIP's states to text tokens."""

    def __init__(self, params: ReduxParams) -> None:
        super().__init__()
        self.redux_up = nn.Linear(params.image_width, params.hidden)
        self.redux_down = nn.Linear(params.hidden, params.width)

    def forward(self, states: Tensor) -> Tensor:
        """states: (B, patches, image_width). Returns (B, patches, width)."""
        return self.redux_down(F.silu(self.redux_up(states)))


class PictureReader:
    """Both networks with weights, on one device."""

    def __init__(self, siglip: SiglipVisionModel, embedder: ReduxEmbedder) -> None:
        self._siglip, self._embedder = siglip, embedder
        self._cancellation = CancellationPoint(siglip.encoder.layers)
        # Position ids are in no file, and wrong without a word when left on the meta device.
        positions = siglip.embeddings.position_embedding.weight
        siglip.embeddings.position_ids = torch.arange(len(positions), device=positions.device)[None]

    def read(self, pictures: Sequence[SeenPicture], cancellation: CancellationCallback) -> Tensor:
        """The pictures' tokens, weighted and added up: (patches, width) float32."""
        weight = self._siglip.embeddings.patch_embedding.weight
        pixels = torch.stack([picture.pixels for picture in pictures]).to(weight.device, weight.dtype)
        with self._cancellation.calling(cancellation):
            states = self._siglip(pixel_values=pixels).last_hidden_state
        tokens = self._embedder(states.to(self._embedder.redux_up.bias.dtype)).float()
        scales = torch.tensor([picture.weight for picture in pictures], device=tokens.device)
        return (tokens * scales[:, None, None]).sum(0)


def picture_reader(networks: Mapping[str, nn.Module]) -> PictureReader:
    siglip, embedder = networks["siglip"], networks["redux"]
    assert isinstance(embedder, ReduxEmbedder)
    return PictureReader(siglip, embedder)


def build(params: ReduxParams) -> Mapping[str, nn.Module]:
    """To be called on the meta device."""
    return {"siglip": SiglipVisionModel(_siglip_config(params.siglip)), "redux": ReduxEmbedder(params)}


def shapes(params: ReduxParams) -> Mapping[str, Shapes]:
    return {
        "siglip": shapes_of(lambda: SiglipVisionModel(_siglip_config(params.siglip))),
        "redux": shapes_of(lambda: ReduxEmbedder(params)),
    }


def redux_params(siglip: TensorReader, config: Config, embedder: TensorReader) -> ReduxParams:
    """Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    own = SizeReader(embedder, {})
    hidden, image_width = own.shape("redux_up.weight", 2)
    return ReduxParams(_siglip_params(siglip, config), image_width, hidden, own.shape("redux_down.weight", 2)[0])


def _siglip_params(reader: TensorReader, config: Config) -> SiglipParams:
    sizes = SizeReader(reader, config)
    hidden, _, patch, _ = sizes.shape("embeddings.patch_embedding.weight", 4)
    side = math.isqrt(sizes.shape("embeddings.position_embedding.weight", 2)[0]) * patch
    heads, image = (
        sizes.told("num_attention_heads", max(hidden // HEAD_DIM, 1)),
        sizes.told("image_size", IMAGE_SIDES.get(side, side)),
    )
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise sizes.error(f"num_attention_heads {heads} does not divide the hidden width {hidden}")
    if not isinstance(image, int) or image // patch * patch != side:
        raise sizes.error(f"image_size {image} is not what {side // patch} x {side // patch} patches of {patch} see")
    return SiglipParams(
        hidden_size=sizes.agreed("hidden_size", hidden),
        intermediate_size=sizes.agreed("intermediate_size", sizes.shape("encoder.layers.0.mlp.fc1.weight", 2)[0]),
        num_hidden_layers=sizes.agreed("num_hidden_layers", count(reader.keys(), "encoder.layers.")),
        num_attention_heads=heads,
        patch_size=sizes.agreed("patch_size", patch),
        image_size=image,
    )


def _siglip_config(params: SiglipParams) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        patch_size=params.patch_size,
        image_size=params.image_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=LAYER_NORM_EPS,
        vision_use_head=False,
    )


def _canonical_siglip(reader: TensorReader) -> Mapped:
    """Under transformers 5's names, without the head."""
    names = {key.removeprefix(PREFIX): key for key in reader.keys()}
    unused = (HEAD, "embeddings.position_ids")
    return renamed(reader, {name: key for name, key in names.items() if not name.startswith(unused)})


SIGLIP = Part(
    name="siglip",
    title="SigLIP image encoder",
    role="image_encoder",
    folder="image_encoder",
    markers=(f"{PREFIX}{HEAD}probe", f"{HEAD}probe"),
    canonical=_canonical_siglip,
    bundle_prefix="image_encoder.",
    float16=False,
)
REDUX = Part(
    name="redux",
    title="FLUX.1 Redux",
    role="image_encoder",
    folder="image_embedder",
    markers=("redux_up.weight",),
    canonical=lambda reader: reader,
    bundle_prefix="image_embedder.",
    float16=False,
)

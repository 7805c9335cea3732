"""docs/models.md, made of the families' rows and of their networks' shapes at full size."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod

import torch
from torch import Tensor

from fluxserve.models import registry
from fluxserve.models.family import Component
from fluxserve.models.flux1.redux import ReduxParams, SiglipParams
from fluxserve.models.flux1.redux import shapes as redux_shapes
from fluxserve.models.sizes import integers
from fluxserve.models.variant import Variant
from fluxserve.pipeline.networks import Blueprint
from fluxserve.request import capabilities
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import Shapes
from fluxserve.weights.checkpoint import Checkpoint

SIZES = {"klein-9b": "full-9b", "klein-base-9b": "full-9b"}
"""Of the published networks, where a family has several."""
REDUX = ReduxParams(SiglipParams(1152, 4304, 27, 16, 14, 384), 1152, 12288, 4096)
ITEM_BYTES = 2
LEGEND = [
    "Bytes are those of the networks in bfloat16, as published. *Least memory* is the smallest `--memory-budget` on a",
    "GPU with which the model draws one picture of its own size, its blocks streaming. *steps* and *guidance* are the",
    "defaults. *serves* is what `/v1/models` tells as `capabilities`: masks are those of edits, references pictures",
    "that an edit draws by; what is not listed is refused.",
    "",
    "FLUX.1 Redux goes with dev, Krea or schnell (`--redux`), which then vary pictures by it and weigh several in an",
    "edit (`redux`). Canny and Depth are served as LoRAs too (`--lora`, on dev, at 0.85 unless a scale is given).",
    "Canny and Depth draw from a map, which is the `image` of an edit; `control: canny` makes Canny's of a photo, with",
    "OpenCV (`pip install fluxserve[canny]`). Depth maps come from the client.",
]


class ShapesReader:
    """Tensors of which only the shapes are known, in bfloat16."""

    source, files = "published", ()

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def keys(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        return torch.bfloat16

    def read(self, key: str) -> Tensor:
        raise NotImplementedError

    def packed(self, key: str) -> PackedWeight | None:
        return None

    packed_meta = packed

    def release(self, key: str) -> None:
        pass


def models_page() -> str:
    """One row for each published model."""
    names = ["MODEL", "licence", "gated", "bytes", "serves", "steps", "guidance", "least memory"]
    lines = ["# Models", "", *LEGEND, "", _row(names), f"|{'---|' * len(names)}"]
    lines += [_row(cells) for cells in _rows()]
    return "\n".join(lines) + "\n"


def _rows() -> Iterator[list[str]]:
    for variant in registry.variants().values():
        if variant.repository is None:
            continue
        checkpoint = _checkpoint(variant)
        yield [
            f"`{variant.name}`: {variant.repository}",
            variant.licence,
            "yes" if variant.gated else "no",
            _gigabytes(sum(_bytes(shapes) for shapes in checkpoint.architecture.shapes().values())),
            ", ".join(capabilities(variant.picture, variant.references)),
            str(variant.steps["medium"]),
            "none" if variant.guidance_scale is None else f"{variant.guidance_scale:g}",
            _gigabytes(_least_bytes(checkpoint)),
        ]
    dev = registry.variants()["dev"]
    size = _gigabytes(sum(map(_bytes, redux_shapes(REDUX).values())))
    yield ["`--redux`: black-forest-labs/FLUX.1-Redux-dev", dev.licence, "yes", size, "variations, redux", "", "", ""]


def _least_bytes(checkpoint: Checkpoint) -> int:
    blueprint = Blueprint(checkpoint, torch.device("cuda"), torch.bfloat16, "", quant=None, compile=False)
    return blueprint.plan("stream", 1).peak_bytes


def _checkpoint(variant: Variant) -> Checkpoint:
    """As it would open, without its files."""
    family = registry.family_of_variant(variant.name)
    made = family.synthetic(SIZES.get(variant.name, "full"), variant.name, "diffusers", "bf16")
    readers = {network.part: ShapesReader(network.shapes) for network in made.networks}
    components = {network.part: Component(readers[network.part], integers(network.config)) for network in made.networks}
    return Checkpoint(variant.name, family, variant, family.architecture(components), readers, {})


def _bytes(shapes: Shapes) -> int:
    return ITEM_BYTES * sum(map(prod, shapes.values()))


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

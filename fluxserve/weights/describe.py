"""What a weight file or a model folder is, in words for people. Reads headers alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.dimensions import transformer_params
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import ALL_PARTS, variant_of
from fluxserve.weights.files.folder import TOKENIZERS, Component, Holdings, look
from fluxserve.weights.files.identify import Part

TITLES: dict[Part, str] = {
    "transformer": "FLUX.1 transformer",
    "autoencoder": "FLUX.1 autoencoder",
    "t5": "T5 text encoder",
    "clip": "CLIP text encoder",
}


@dataclass(frozen=True)
class NetworkDescription:
    """One network of a file or folder. packings: parameters by dtype or quantisation. nbytes: as stored."""

    part: Part
    variant: str | None
    packings: dict[str, int]
    nbytes: int

    @property
    def parameters(self) -> int:
        return sum(self.packings.values())

    def __str__(self) -> str:
        variant = f", {self.variant}" if self.variant else ""
        shares = sorted(((count / self.parameters, name) for name, count in self.packings.items()), reverse=True)
        packings = ", ".join(name if share > 0.99 else f"{name} {share:.0%}" for share, name in shares if share > 0.01)
        return f"{TITLES[self.part]}{variant}: {self.parameters:,} parameters, {packings}, {self.nbytes / 1e9:.2f} GB"


@dataclass(frozen=True)
class Description:
    """networks: what was found. missing: what a complete model needs besides."""

    path: Path
    networks: tuple[NetworkDescription, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        lines = [str(self.path), *(f"  {network}" for network in self.networks)]
        lines.append(f"  missing for a whole model: {', '.join(self.missing)}" if self.missing else "  a whole model")
        return "\n".join(lines)


def describe(path: Path) -> Description:
    """The verdict on a file or folder; its strict check is `open_checkpoint`'s.

    Raises:
        CheckpointError: it is damaged, foreign (told by name, with what to use instead), or holds no network.
        ConfigError: a GGUF file, and the `gguf` extra is not installed.
    """
    holdings = Holdings()
    look(path, ALL_PARTS, holdings)
    if not holdings.components:
        raise CheckpointError("\n".join([f"{path}: holds no network of FLUX.1", *holdings.unread]))
    networks = (_describe(part, holdings) for part in TITLES if part in holdings.components)
    missing = [TITLES[part] for part in TITLES if part not in holdings.components]
    missing += [name for name in TOKENIZERS if name not in holdings.tokenizers]
    return Description(path, tuple(networks), tuple(missing))


def _describe(part: Part, holdings: Holdings) -> NetworkDescription:
    component = holdings.components[part]
    packings: Counter[str] = Counter()
    nbytes = 0
    for key in component.reader.keys():
        name, size = _storage(component.reader, key)
        packings[name] += math.prod(component.reader.shape(key))
        nbytes += size
    variant = _variant(component, holdings.variant) if part == "transformer" else None
    return NetworkDescription(part, variant, dict(packings), nbytes)


def _storage(reader: TensorReader, key: str) -> tuple[str, int]:
    """How a tensor is packed, and the bytes it takes."""
    packed = reader.packed_meta(key)
    if packed is not None:
        return packed.scheme.name, packed.nbytes
    dtype = reader.dtype(key)
    return str(dtype).removeprefix("torch."), math.prod(reader.shape(key)) * dtype.itemsize


def _variant(transformer: Component, named: str | None) -> str:
    return variant_of(transformer, transformer_params(transformer.reader, transformer.config), named).name

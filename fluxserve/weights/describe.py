"""What a weight file or a model folder is, in words for people. Reads headers alone."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import CheckpointError
from fluxserve.models import registry
from fluxserve.models.family import Component, Part
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import MODEL_ROLES
from fluxserve.weights.files.folder import FoundParts, scan


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
        return f"{self.part.title}{variant}: {self.parameters:,} parameters, {packings}, {self.nbytes / 1e9:.2f} GB"


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
    found = FoundParts()
    scan(path, MODEL_ROLES | {"image_encoder"}, found)
    family = found.family
    if family is None:
        titles = " or ".join(known.title for known in registry.families())
        raise CheckpointError("\n".join([f"{path}: holds no network of {titles}", *found.unread]))
    networks = (_describe(part, found) for part in family.parts if part in found.components)
    missing = [part.title for part in found.missing_parts] + found.missing_tokenizers
    return Description(path, tuple(networks), tuple(missing))


def _describe(part: Part, found: FoundParts) -> NetworkDescription:
    component = found.components[part]
    packings: Counter[str] = Counter()
    nbytes = 0
    for key in component.reader.keys():
        name, size = _storage(component.reader, key)
        packings[name] += math.prod(component.reader.shape(key))
        nbytes += size
    return NetworkDescription(part, _variant(part, component, found), dict(packings), nbytes)


def _variant(part: Part, component: Component, found: FoundParts) -> str | None:
    if part.role != "denoiser" or found.family is None:
        return None
    return found.family.variant(component, found.told).name


def _storage(reader: TensorReader, key: str) -> tuple[str, int]:
    """How a tensor is packed, and the bytes it takes."""
    packed = reader.packed_meta(key)
    if packed is not None:
        return packed.scheme.name, packed.nbytes
    dtype = reader.dtype(key)
    return str(dtype).removeprefix("torch."), math.prod(reader.shape(key)) * dtype.itemsize

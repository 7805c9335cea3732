"""A complete model on disk: its family's networks as readers, their sizes and the tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fluxserve.errors import CheckpointError
from fluxserve.models.family import Architecture, Component, Family, Part, Role, Told
from fluxserve.models.variant import Variant
from fluxserve.tensors.reader import TensorReader, name_some, require_exact
from fluxserve.weights.files.folder import FoundParts, scan
from fluxserve.weights.hub import fetch as hub
from fluxserve.weights.source import locate

ProgressCallback = hub.ByteProgress
"""(what is being fetched, bytes done, bytes in all)."""

MODEL_ROLES: frozenset[Role] = frozenset({"denoiser", "autoencoder", "text_encoder"})


@dataclass(frozen=True)
class Checkpoint:
    """Everything a pipeline is built from; opening it has checked every name and shape, and read no weights.

    id: what clients know the model by: the Hub id, `demo`, `demo-untrained`, or the folder's or file's stem.
    readers: of the networks, by part. tokenizers: their folders, by the family's names.
    """

    id: str
    family: Family
    variant: Variant
    architecture: Architecture
    readers: Mapping[str, TensorReader]
    tokenizers: Mapping[str, Path]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those of its family that it has."""
        return tuple(part for part in self.family.parts if part.name in self.readers)

    @property
    def denoiser(self) -> Part:
        return next(part for part in self.family.parts if part.role == "denoiser")

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of its weights and of its tokenizers, by name."""
        weights = {path for reader in self.readers.values() for path in reader.files}
        tokenizers = {path for folder in self.tokenizers.values() for path in folder.iterdir()}
        return tuple(sorted(path for path in weights | tokenizers if path.is_file()))


def open_checkpoint(
    model: str,
    text_encoders: str | None,
    progress: ProgressCallback,
    variant: str | None = None,
    redux: str | None = None,
) -> Checkpoint:
    """Finds, fetches if need be, and checks a model.

    model, text_encoders, variant, redux: see `PipelineConfig`.

    Raises:
        SourceError: the Hub repository is gated, missing or unreachable; the message is a four-line recipe.
        CheckpointError: a file is damaged, incomplete or of a kind that is refused; names it and the first five
            differences.
        ConfigError: `model`, `text_encoders` or `redux` names nothing.
    """
    source = locate(model, progress)
    encoders = locate(text_encoders, progress, hub.text_folders()).path if text_encoders else None
    found, family = _gather(source.path, encoders)
    if redux is not None:
        _add_image_encoder(locate(redux, progress, hub.image_folders()).path, found, family)
    told = replace(found.told, name=found.told.name or source.id, variant=variant or found.told.variant)
    checkpoint = _assemble(source.id, found, family, told)
    _require_fit(checkpoint)
    return checkpoint


def _gather(model: Path, encoders: Path | None) -> tuple[FoundParts, Family]:
    """Looks where parts may lie, the most explicit place first; then nothing may be missing."""
    found = FoundParts()
    if encoders:
        scan(encoders, {"text_encoder"}, found)
    scan(model, MODEL_ROLES, found)
    if not model.is_dir():
        scan(model.parent, MODEL_ROLES - {"denoiser"}, found)
    if encoders:
        scan(encoders, {"autoencoder"}, found)
    family = found.family
    missing = sorted(part.name for part in found.missing_parts) + found.missing_tokenizers
    if family is None or missing:
        reasons = "".join(f"\n  {reason}" for reason in found.unread)
        what = ", no ".join(missing) or "network"
        raise CheckpointError(
            f"{model}: incomplete: found no {what} there{f' or in {encoders}' if encoders else ''}; "
            f"put them beside it, or name a folder that holds them with --text-encoders{reasons}"
        )
    return found, family


def _add_image_encoder(path: Path, found: FoundParts, family: Family) -> None:
    """From a folder, or from a file and what lies beside it."""
    wanted = [part for part in family.parts if part.role == "image_encoder"]
    if not wanted:
        raise CheckpointError(f"{path}: {family.title} takes no image encoder")
    for place in (path,) if path.is_dir() else (path, path.parent):
        scan(place, {"image_encoder"}, found)
    missing = [part.title for part in wanted if part not in found.components]
    if missing:
        reasons = "".join(f"\n  {reason}" for reason in found.unread)
        raise CheckpointError(f"{path}: incomplete: found no {', no '.join(missing)} there{reasons}")


def _assemble(model_id: str, found: FoundParts, family: Family, told: Told) -> Checkpoint:
    components: dict[str, Component] = {
        part.name: found.components[part] for part in family.parts if part in found.components
    }
    denoiser = next(found.components[part] for part in family.parts if part.role == "denoiser")
    return Checkpoint(
        id=model_id,
        family=family,
        variant=family.variant(denoiser, told),
        architecture=family.architecture(components),
        readers={name: component.reader for name, component in components.items()},
        tokenizers={name: found.tokenizers[name] for name in family.tokenizers},
    )


def _require_fit(checkpoint: Checkpoint) -> None:
    """Every network has exactly the tensors its sizes ask for, and the networks fit together.

    Raises:
        CheckpointError: names the file and the differences.
    """
    shapes = checkpoint.architecture.shapes()
    for part in checkpoint.parts:
        require_exact(checkpoint.readers[part.name], shapes[part.name], f"a {part.title} of its size")
    misfits = checkpoint.architecture.misfits()
    if misfits:
        source = checkpoint.readers[checkpoint.denoiser.name].source
        raise CheckpointError(f"{source}: does not fit its companions: {name_some(misfits)}")

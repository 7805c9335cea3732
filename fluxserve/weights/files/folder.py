"""What a folder or a file of a model holds: networks with their configs, tokenizers, the variant.

A diffusers folder has a subfolder for each network; elsewhere single files lie side by side and are told apart by
what is in them. A single file may have a config beside it: `ae.json` for `ae.safetensors`, `config.json` for names that
diffusers and transformers give.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxserve.errors import CheckpointError
from fluxserve.models import registry
from fluxserve.models.family import Component, Family, Part, Role, Told
from fluxserve.models.markings import VARIANT_FIELD
from fluxserve.models.sizes import integers
from fluxserve.weights.files.identify import components
from fluxserve.weights.files.json_file import read_json
from fluxserve.weights.files.weight_sets import COMPONENT_NAMES, WeightSet, set_of, sets_in

READABLE_QUANT_METHODS = ("bitsandbytes",)


@dataclass
class FoundParts:
    """What has been found so far. told: what the files say of the model. unread: files that failed."""

    components: dict[Part, Component] = field(default_factory=dict)
    tokenizers: dict[str, Path] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    unread: list[str] = field(default_factory=list)

    @property
    def family(self) -> Family | None:
        """The one whose pipeline the files name, else the one that has these networks; None while nothing was found."""
        if self.told.pipeline is not None:
            return registry.family_of_pipeline(self.told.pipeline)
        return registry.family_of_parts(self.components.keys())

    @property
    def missing_parts(self) -> list[Part]:
        """What a complete model of the family has besides."""
        needed = [part for part in self.family.parts if part.role != "image_encoder"] if self.family else []
        return [part for part in needed if part not in self.components]

    @property
    def missing_tokenizers(self) -> list[str]:
        return [name for name in self.family.tokenizers if name not in self.tokenizers] if self.family else []

    def note(self, told: Told) -> None:
        """What was told first counts."""
        old = self.told
        self.told = Told(
            old.pipeline or told.pipeline,
            old.variant or told.variant,
            {**told.flags, **old.flags},
            old.name or told.name,
        )

    def take(self, found: Mapping[Part, Component], roles: Collection[Role]) -> dict[Part, Component]:
        """Keeps those of the roles that are still missing. Returns them."""
        new = {part: found[part] for part in found.keys() - self.components.keys() if part.role in roles}
        self.components |= new
        return new


def scan(path: Path, roles: Collection[Role], found: FoundParts) -> None:
    """Adds to `found` the networks of these roles that are missing there and lie at `path`, a folder or a weight file.

    Raises:
        CheckpointError: a file is damaged or refused, or two files claim the same place.
    """
    try:
        if path.is_dir():
            _scan_subfolders(path, roles, found)
            _scan_files(path, roles, found)
            _scan_tokenizers(path, found)
        else:
            weights = set_of(path)
            found.take(_components(weights), roles)
            found.note(Told(variant=_config(weights).get(VARIANT_FIELD), name=path.stem))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _scan_subfolders(folder: Path, roles: Collection[Role], found: FoundParts) -> None:
    index = folder / "model_index.json"
    if index.is_file() and set(roles) != {"image_encoder"}:
        description = read_json(index)
        _require_known(index, description)
        if "denoiser" in roles:  # else it tells of another model, whose encoders are borrowed
            flags = {key: value for key, value in description.items() if isinstance(value, bool)}
            found.note(Told(str(description["_class_name"]), description.get(VARIANT_FIELD), flags))
    wanted = [part for part in registry.parts() if part.role in roles and part not in found.components]
    for name in dict.fromkeys(part.folder for part in wanted):
        if (folder / name).is_dir():
            found.take(_open_subfolder(folder / name, [part for part in wanted if part.folder == name]), roles)


def _require_known(index: Path, description: Mapping[str, Any]) -> None:
    """Refuses pipelines of other models, and those of known ones that no family draws with."""
    name = str(description.get("_class_name"))
    if registry.family_of_pipeline(name) is None:
        known = ", ".join(f"{family.title} ({', '.join(family.pipelines)})" for family in registry.families())
        raise CheckpointError(f"{index}: describes a {name}; fluxserve draws with {known}")


def _open_subfolder(folder: Path, expected: Collection[Part]) -> dict[Part, Component]:
    found = _components(_weights_of(folder))
    if not found.keys() & set(expected) or len({part.markers for part in found}) > 1:
        holds = " and ".join(dict.fromkeys(part.name for part in found))
        wanted = " or ".join(dict.fromkeys(part.name for part in expected))
        raise CheckpointError(f"{folder}: holds {holds}, expected {wanted}")
    return found


def _weights_of(folder: Path) -> WeightSet:
    """The one set of a component's folder that is named as such."""
    named = {found.name: found for found in sets_in(folder) if found.variant is not None}
    plain = [named[name] for name in COMPONENT_NAMES if name in named]
    if len(named) > 1 and not plain:
        raise CheckpointError(f"{folder}: holds several variants: {', '.join(sorted(named))}; keep one of them there")
    if not named:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{folder}: holds {there}, but none of {', '.join(COMPONENT_NAMES)} (or their index)")
    return plain[0] if plain else next(iter(named.values()))


def _require_readable(source: Path, config: Mapping[str, Any]) -> None:
    """Refuses by name what is quantised in a way that fluxserve does not read."""
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if method is not None and method not in READABLE_QUANT_METHODS:
        raise CheckpointError(
            f"{source}: is quantised by {method}, which fluxserve does not read; "
            "use the bfloat16 folder, or an fp8, GGUF or NF4 file instead"
        )


def _scan_files(folder: Path, roles: Collection[Role], found: FoundParts) -> None:
    """Single files side by side. One that cannot be read is only told of if something is missing in the end."""
    if not any(part.role in roles and part not in found.components for part in registry.parts()):
        return
    before = found.components.keys() | set()
    origins: dict[Part, Path] = {}
    for weights in sets_in(folder):
        try:
            here = _components(weights)
        except CheckpointError as error:
            found.unread.append(error.message)
            continue
        here = {part: here[part] for part in here.keys() - before if part.role in roles}
        for part in here.keys() & origins.keys():
            raise CheckpointError(
                f"{folder}: {origins[part].name} and {weights.path.name} both hold a {part.name}; keep one of them "
                "there, or name the transformer's file as the model and a folder with --text-encoders"
            )
        origins |= dict.fromkeys(here, weights.path)
        found.take(here, roles)
        if any(part.role == "denoiser" for part in here):
            found.note(Told(variant=_config(weights).get(VARIANT_FIELD), name=weights.path.stem))


def _components(weights: WeightSet) -> dict[Part, Component]:
    config = _config(weights)
    return {part: Component(reader, integers(config)) for part, reader in components(weights.open()).items()}


def _config(weights: WeightSet) -> dict[str, Any]:
    config = read_json(weights.sidecar) if weights.sidecar.is_file() else {}
    _require_readable(weights.path, config)
    return config


def _scan_tokenizers(folder: Path, found: FoundParts) -> None:
    for name, files in registry.tokenizers().items():
        if name not in found.tokenizers and (folder / name).is_dir():
            if not any((folder / name / file).is_file() for file in files):
                raise CheckpointError(f"{folder / name}: holds neither {' nor '.join(files)}")
            found.tokenizers[name] = folder / name

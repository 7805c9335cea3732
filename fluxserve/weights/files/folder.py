"""What a folder or a file of a model holds: networks with their configs, tokenizers, the variant. Knows no Hub.

A diffusers folder has a subfolder for each network; elsewhere single files lie side by side and are told apart by
what is in them. A single file may have a config beside it: `ae.json` for `ae.safetensors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.dimensions import Config, integers
from fluxserve.models.markings import VARIANT_FIELD
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.files.identify import Part, components, open_file
from fluxserve.weights.files.json_file import read_json
from fluxserve.weights.files.safetensors_file import open_shards

SUBFOLDERS: dict[str, Part] = {
    "transformer": "transformer",
    "vae": "autoencoder",
    "text_encoder": "clip",
    "text_encoder_2": "t5",
}
TOKENIZERS = {"tokenizer": ("tokenizer.json", "vocab.json"), "tokenizer_2": ("tokenizer.json", "spiece.model")}
"""The tokenizers' folders, and the files one of which each must hold."""

WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
WEIGHT_SUFFIXES = (".safetensors", ".gguf")

READABLE_QUANT_METHODS = ("bitsandbytes",)


@dataclass(frozen=True)
class Component:
    """One network: its tensors, and the integers of its config."""

    reader: TensorReader
    config: Config


@dataclass
class Holdings:
    """What has been found so far. variant: a name in VARIANTS, where the files tell. unread: files that failed."""

    components: dict[Part, Component] = field(default_factory=dict)
    tokenizers: dict[str, Path] = field(default_factory=dict)
    variant: str | None = None
    unread: list[str] = field(default_factory=list)


def look(path: Path, wanted: frozenset[Part], holdings: Holdings) -> None:
    """Adds to `holdings` what is wanted, still missing there, and found at `path`, a folder or a weight file.

    Raises:
        CheckpointError: a file is damaged or refused, or two files claim the same place.
    """
    wanted = wanted - holdings.components.keys()
    try:
        if path.is_dir():
            _look_in_subfolders(path, wanted, holdings)
            _look_at_files(path, wanted - holdings.components.keys(), holdings)
            _look_for_tokenizers(path, holdings)
        else:
            holdings.components |= _pick(_components_of_file(path), wanted)
            holdings.variant = holdings.variant or _sidecar(path).get(VARIANT_FIELD)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _look_in_subfolders(folder: Path, wanted: Iterable[Part], holdings: Holdings) -> None:
    index = folder / "model_index.json"
    if index.is_file():
        description = read_json(index)
        _require_flux(index, description)
        holdings.variant = holdings.variant or description.get(VARIANT_FIELD)
    for name, part in SUBFOLDERS.items():
        if part in wanted and (folder / name).is_dir():
            holdings.components[part] = _open_subfolder(folder / name, part)


def _require_flux(index: Path, description: Mapping[str, Any]) -> None:
    name = str(description.get("_class_name"))
    if not name.startswith("Flux") or name.startswith("Flux2"):
        raise CheckpointError(f"{index}: describes a {name}; fluxserve draws with FLUX.1 (FluxPipeline)")


def _open_subfolder(folder: Path, part: Part) -> Component:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    _require_readable(folder, config)
    found = components(_open_weights(folder))
    if found.keys() != {part}:
        raise CheckpointError(f"{folder}: holds {' and '.join(found)}, expected {part}")
    return Component(found[part], integers(config))


def _require_readable(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses by name what is quantised in a way that fluxserve does not read."""
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    if method is not None and method not in READABLE_QUANT_METHODS:
        raise CheckpointError(
            f"{folder}: is quantised by {method}, which fluxserve does not read; "
            "use the bfloat16 folder, or an fp8, GGUF or NF4 file instead"
        )


def _open_weights(folder: Path) -> TensorReader:
    for name in WEIGHT_NAMES:
        if (folder / f"{name}.index.json").is_file():
            return open_shards(folder / f"{name}.index.json")
        if (folder / name).is_file() or (folder / name).is_symlink():
            return open_file(folder / name)
    there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CheckpointError(f"{folder}: holds {there}, but none of {', '.join(WEIGHT_NAMES)} (or their index)")


def _look_at_files(folder: Path, wanted: frozenset[Part], holdings: Holdings) -> None:
    """Single files side by side. One that cannot be read is only told of if something is missing in the end."""
    if not wanted:
        return
    homes: dict[Part, Path] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES):
        try:
            found = _pick(_components_of_file(path), wanted)
        except CheckpointError as error:
            holdings.unread.append(error.message)
            continue
        for part in found.keys() & homes.keys():
            raise CheckpointError(
                f"{folder}: {homes[part].name} and {path.name} both hold a {part}; keep one of them there, "
                "or name the transformer's file as the model and a folder with --text-encoders"
            )
        homes |= dict.fromkeys(found, path)
        holdings.components |= found
        holdings.variant = holdings.variant or _sidecar(path).get(VARIANT_FIELD)


def _components_of_file(path: Path) -> dict[Part, Component]:
    config = integers(_sidecar(path))
    return {part: Component(reader, config) for part, reader in components(open_file(path)).items()}


def _sidecar(path: Path) -> dict[str, Any]:
    config = path.with_suffix(".json")
    return read_json(config) if config.is_file() else {}


def _pick(found: Mapping[Part, Component], wanted: Iterable[Part]) -> dict[Part, Component]:
    return {part: component for part, component in found.items() if part in wanted}


def _look_for_tokenizers(folder: Path, holdings: Holdings) -> None:
    for name, files in TOKENIZERS.items():
        if name not in holdings.tokenizers and (folder / name).is_dir():
            if not any((folder / name / file).is_file() for file in files):
                raise CheckpointError(f"{folder / name}: holds neither {' nor '.join(files)}")
            holdings.tokenizers[name] = folder / name

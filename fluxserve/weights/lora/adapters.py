"""The LoRAs of a model: those that change it from the start, and those that requests may name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fluxserve.errors import ConfigError
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import Checkpoint
from fluxserve.weights.lora.apply import MergedReader, Weighted, weigh
from fluxserve.weights.lora.control import CONTROL_SCALE, as_control_model
from fluxserve.weights.lora.file import Lora, read_lora
from fluxserve.weights.lora.strength import PEFT_WEIGHTS

LORA_SUFFIX = ".safetensors"
FOLDER_NAMES = (PEFT_WEIGHTS, "pytorch_lora_weights.safetensors")
_IN = " or ".join(FOLDER_NAMES)


@dataclass(frozen=True)
class Adapters:
    """beside: what could not be merged, by network. by_name: the LoRAs that requests may name. files: of all LoRAs."""

    beside: Mapping[str, Weighted]
    by_name: Mapping[str, Lora]
    files: tuple[Path, ...] = ()

    @property
    def requestable_values(self) -> int:
        """How many numbers the largest LoRA that requests may name has: so much room is kept for requests' LoRAs."""
        return max((lora.values for lora in self.by_name.values()), default=0)

    @property
    def values(self) -> int:
        """How many numbers lie beside the weights, at most as planned."""
        linears = (own for weighted in self.beside.values() for own in weighted.values())
        return self.requestable_values + sum(branch.values for own in linears for branch, _ in own)


NO_ADAPTERS = Adapters({}, {})


def adapt(checkpoint: Checkpoint, loras: Sequence[str], folder: str | None) -> tuple[Checkpoint, Adapters]:
    """The model with LoRAs merged into it where its weights are not packed, and the LoRAs that are left.

    loras: `PATH` or `PATH:SCALE`, each; a control LoRA makes a control model of it. folder: of the LoRAs that requests
    may name, see `lora_files`.

    Raises:
        ConfigError: a path, a scale or the folder is wrong.
        CheckpointError: a file does not fit the model, or is of a kind that is not supported; names the keys.
    """
    if not loras and folder is None:
        return checkpoint, NO_ADAPTERS
    named = [parse_lora(text) for text in loras]
    requestable = lora_files(folder) if folder is not None else {}
    checkpoint = as_control_model(checkpoint, [path for path, _ in named])
    targets, control = checkpoint.architecture.lora_targets(), checkpoint.architecture.control
    chosen = [_weighted(read_lora(path, targets, control), scale) for path, scale in named]
    replaced = {key: scale for lora, _ in chosen for key, scale in lora.replaced.items()}
    merged = {
        name: _merged(name, checkpoint.readers[name], chosen, replaced if name == checkpoint.denoiser.name else {})
        for name in {target.network for target in targets.values()}
    }
    beside = {name: reader.unmerged for name, reader in merged.items()}
    by_name = {name: read_lora(path, targets) for name, path in requestable.items()}
    files = (*(path for path, _ in named), *requestable.values())
    return replace(checkpoint, readers={**checkpoint.readers, **merged}), Adapters(beside, by_name, files)


def _merged(
    name: str, reader: TensorReader, loras: Sequence[tuple[Lora, float]], replaced: Mapping[str, Tensor]
) -> MergedReader:
    return MergedReader(reader, weigh((lora.branches.get(name, {}), scale) for lora, scale in loras), replaced)


def _weighted(lora: Lora, scale: float | None) -> tuple[Lora, float]:
    usual = CONTROL_SCALE if lora.replaced else 1.0
    return lora, usual if scale is None else scale


def parse_lora(text: str) -> tuple[Path, float | None]:
    """(file, scale) of `PATH:SCALE`, or of `PATH` without one; a file, or a folder as peft and diffusers write them.

    Raises:
        ConfigError: there is no LoRA, or the scale is no number.
    """
    whole = lora_at(Path(text))
    if whole is not None:
        return whole, None
    path, _, scale = text.rpartition(":")
    file = lora_at(Path(path)) if path else None
    if file is None:
        raise ConfigError(f"no LoRA file {text!r}; name it as PATH or PATH:SCALE, a file, or a folder with {_IN}")
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"the scale of the LoRA {path} must be a number, got {scale!r}")
    return file, number


def lora_files(folder: str) -> dict[str, Path]:
    """The LoRAs in a folder by name: the stems of files, the names of folders that hold one. Hidden ones are none.

    Raises:
        ConfigError: the folder cannot be read, or two LoRAs have one name.
    """
    found: dict[str, Path] = {}
    try:
        for path in sorted(path for path in Path(folder).iterdir() if not path.name.startswith(".")):
            file = lora_at(path) if path.is_dir() or path.suffix.lower() == LORA_SUFFIX else None
            name = path.name if path.is_dir() else path.stem
            if file is not None and name in found:
                raise ConfigError(f"two LoRAs in {folder} are named {name}: {found[name]} and {file}; rename one")
            found |= {} if file is None else {name: file}
    except OSError as error:
        raise ConfigError(f"the folder of LoRAs {folder} cannot be read: {error}") from error
    return found


def lora_at(path: Path) -> Path | None:
    """The file that a path to a LoRA means: itself, or the one in a folder as peft and diffusers write them."""
    candidates = (path, *(path / name for name in FOLDER_NAMES))
    return next((candidate for candidate in candidates if candidate.is_file()), None)

"""LoRA files: changes of Linears, read for the networks at hand.

scale * the matrix of a branch, scale = alpha / rank (1 without alpha), is added to rows of the networks' matrices.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.lora_keys import CONTROL, EMBEDDINGS, Kind, is_control, is_lora, parse_key, unsupported
from fluxserve.models.lora_target import ControlTargets, LoraTarget
from fluxserve.tensors.reader import TensorReader, name_some
from fluxserve.weights.files.identify import open_copy, open_file
from fluxserve.weights.lora.branch import Branch
from fluxserve.weights.lora.matrices import read_branch
from fluxserve.weights.lora.strength import PEFT_CONFIG, Strengths

log = logging.getLogger(__name__)


Branches = Mapping[str, tuple[Branch, ...]]
"""A network's Linears with the branches of each."""


@dataclass(frozen=True)
class Lora:
    """One file. branches: by network. skipped: keys of what is not supported: all of it zero, or words.

    replaced: the denoiser's scales of norms that it replaces, of a control LoRA.
    """

    name: str
    branches: Mapping[str, Branches]
    skipped: tuple[str, ...]
    replaced: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def all_branches(self) -> list[Branch]:
        networks = self.branches.values()
        return [branch for linears in networks for some in linears.values() for branch in some]

    @property
    def nbytes(self) -> int:
        return sum(branch.nbytes for branch in self.all_branches)

    @property
    def values(self) -> int:
        """How many numbers its matrices have."""
        return sum(branch.values for branch in self.all_branches)


def read_lora(path: Path, targets: Mapping[str, LoraTarget], control: ControlTargets | None = None) -> Lora:
    """A LoRA file for the networks that `targets` names; every key is used, or refused by name.

    It is read whole: what becomes of the file later changes nothing. targets: see `Architecture.lora_targets`.
    control: what else a control LoRA may change; None where none is taken.

    Raises:
        CheckpointError: damaged, of another model or size, or of a family that is not supported; names the keys.
    """
    if not is_lora(open_file(path).keys()):
        raise CheckpointError(f"{path}: holds no LoRA")
    reader = open_copy(path)
    if is_control(reader.keys()) and control is None:
        raise CheckpointError(
            f"{path}: is {CONTROL}; it makes another model of the one it is given to: give it with --lora at the start"
        )
    norms = {key: control.norms[key] for key in reader.keys() if key in control.norms} if control else {}
    zero, acting = unsupported(reader)
    if acting is not None:
        raise CheckpointError(f"{path}: {acting}")
    words = [key for key in reader.keys() if key.startswith(EMBEDDINGS)]
    modules = _modules(reader, [key for key in reader.keys() if key not in (*zero, *words, *norms)], targets)
    strengths = Strengths(path, reader)
    branches: dict[str, dict[str, tuple[Branch, ...]]] = {}
    for module, keys in modules.items():
        target = targets[module]
        linears = branches.setdefault(target.network, {})
        branch = read_branch(reader, module, keys, target, strengths)
        linears[target.linear] = (*linears.get(target.linear, ()), branch)
    _tell(path, zero, words, strengths)
    replaced = {tensor: _finite(reader, key) for key, tensor in norms.items()}
    return Lora(path.stem, branches, (*zero, *words), replaced)


def _tell(path: Path, zero: Collection[str], words: Collection[str], strengths: Strengths) -> None:
    if zero:
        log.info("%s: skipped %d tensors that are all zero: %s", path, len(zero), name_some(zero))
    if words:
        log.warning("%s: the words it was trained with are left out, the rest acts: %s", path, name_some(words))
    if strengths.peft_without_config:
        log.warning("%s: no %s beside it; it acts as if alpha were the rank", path, PEFT_CONFIG)


def _modules(
    reader: TensorReader, keys: Collection[str], targets: Mapping[str, LoraTarget]
) -> dict[str, dict[Kind, str]]:
    """Module -> kind -> key."""
    modules: dict[str, dict[Kind, str]] = {}
    unknown = []
    for key in keys:
        module, kind = parse_key(key) or (key, "alpha")
        if module not in targets:
            unknown.append(key)
        elif kind in modules.setdefault(module, {}):
            raise CheckpointError(f"{reader.source}: {modules[module][kind]} and {key} are the same matrix twice")
        else:
            modules[module][kind] = key
    if unknown:
        raise CheckpointError(f"{reader.source}: holds what this model has no place for: {name_some(sorted(unknown))}")
    if not modules:
        raise CheckpointError(f"{reader.source}: holds no LoRA but for tensors that are all zero")
    return modules


def _finite(reader: TensorReader, key: str) -> Tensor:
    tensor = reader.read(key)
    if not tensor.is_floating_point() or not tensor.float().isfinite().all():
        raise CheckpointError(f"{reader.source}: the numbers of {key} are not all finite floating point numbers")
    return tensor

"""LoRA files: low-rank changes of Linears, read for the networks at hand. Knows no layers and no requests.

delta W = scale * up @ down, scale = alpha / rank (1 without alpha), added to rows of the networks' matrices.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.lora_target import LoraTarget
from fluxserve.tensors.reader import TensorReader, name_some
from fluxserve.weights.files.identify import open_file
from fluxserve.weights.files.json_file import parse_json
from fluxserve.weights.files.safetensors_file import SafetensorsFile

log = logging.getLogger(__name__)

_DOWN, _UP, _ALPHA = "down", "up", "alpha"
KINDS = {
    ".lora_down.weight": _DOWN,
    ".lora_up.weight": _UP,
    ".lora_A.weight": _DOWN,
    ".lora_B.weight": _UP,
    ".lora_A.default.weight": _DOWN,
    ".lora_B.default.weight": _UP,
    ".lora.down.weight": _DOWN,
    ".lora.up.weight": _UP,
    ".down.weight": _DOWN,
    ".up.weight": _UP,
    ".alpha": _ALPHA,
}
"""Endings of keys, longer ones first where one ends another."""

REFUSED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "diff": "a full-rank difference",
    "diff_b": "a difference of a bias",
    "bias": "a change of a bias",
}
"""What is no low-rank change, by a part of the key, or what one begins with. Some files hold it all zero."""

CONTROL_MARK = "query_norm.scale"
METADATA_FIELD = "lora_adapter_metadata"


@dataclass(frozen=True)
class Branch:
    """One change. down: (rank, in), up: (rows, rank); it adds to the Linear's rows from `first_row` on."""

    down: Tensor
    up: Tensor
    scale: float
    first_row: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.up.shape[0])

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def to(self, device: torch.device, dtype: torch.dtype) -> Branch:
        return replace(self, down=self.down.to(device, dtype), up=self.up.to(device, dtype))


Branches = Mapping[str, tuple[Branch, ...]]
"""A network's Linears with the branches of each."""


@dataclass(frozen=True)
class Lora:
    """One file. branches: by network. skipped: keys of what is not supported, all of it zero."""

    name: str
    branches: Mapping[str, Branches]
    skipped: tuple[str, ...]

    @property
    def all_branches(self) -> list[Branch]:
        networks = self.branches.values()
        return [branch for linears in networks for some in linears.values() for branch in some]

    @property
    def nbytes(self) -> int:
        return sum(branch.nbytes for branch in self.all_branches)


def read_lora(path: Path, targets: Mapping[str, LoraTarget]) -> Lora:
    """A LoRA file for the networks that `targets` names ; every key is used, or refused by name.

    targets: see `Architecture.lora_targets`.

    Raises:
        CheckpointError: damaged, of another model or size, or of a family that is not supported; names the keys.
    """
    reader = open_file(path)
    if any(CONTROL_MARK in key for key in reader.keys()) and any("lora_A" in key for key in reader.keys()):
        raise CheckpointError(f"{path}: is a control LoRA (Canny or Depth), which needs a control model; not supported")
    skipped = _skipped(reader)
    modules = _modules(reader, [key for key in reader.keys() if key not in skipped], targets)
    alphas = _Alphas(reader)
    branches: dict[str, dict[str, tuple[Branch, ...]]] = {}
    for module, keys in modules.items():
        target = targets[module]
        linears = branches.setdefault(target.network, {})
        branch = _branch(reader, module, keys, target, alphas)
        linears[target.linear] = (*linears.get(target.linear, ()), branch)
    if skipped:
        log.info("%s: skipped %d tensors that are all zero: %s", path, len(skipped), name_some(skipped))
    return Lora(path.stem, branches, skipped)


def _skipped(reader: TensorReader) -> tuple[str, ...]:
    """Keys of what is not supported, which may be there if it is all zero and so changes nothing."""
    unsupported = {key: what for key in reader.keys() if (what := _refusal(key))}
    for key, what in unsupported.items():
        if bool(reader.read(key).any()):
            raise CheckpointError(f"{reader.source}: {key} is {what}, which fluxserve does not support")
    return tuple(unsupported)


def _refusal(key: str) -> str | None:
    for part in key.split("."):
        for word, what in REFUSED.items():
            if part == word or (word.endswith("_") and part.startswith(word)):
                return what
    return None


def _modules(
    reader: TensorReader, keys: Collection[str], targets: Mapping[str, LoraTarget]
) -> dict[str, dict[str, str]]:
    """Module -> kind -> key."""
    modules: dict[str, dict[str, str]] = {}
    unknown = []
    for key in keys:
        ending = next((ending for ending in KINDS if key.endswith(ending)), None)
        module = key.removesuffix(ending) if ending else key
        if ending is None or module not in targets:
            unknown.append(key)
        else:
            modules.setdefault(module, {})[KINDS[ending]] = key
    if unknown:
        raise CheckpointError(f"{reader.source}: holds what this model has no place for: {name_some(sorted(unknown))}")
    if not modules:
        raise CheckpointError(f"{reader.source}: holds no LoRA")
    return modules


def _branch(reader: TensorReader, module: str, keys: Mapping[str, str], target: LoraTarget, alphas: _Alphas) -> Branch:
    if _DOWN not in keys or _UP not in keys:
        raise CheckpointError(f"{reader.source}: {module} lacks its {_DOWN if _UP in keys else _UP} matrix")
    down, up = reader.read(keys[_DOWN]), reader.read(keys[_UP])
    rank = down.shape[0]
    if down.shape != (rank, target.columns) or up.shape != (target.rows, rank):
        raise CheckpointError(
            f"{reader.source}: {module} has matrices {tuple(down.shape)} and {tuple(up.shape)}; "
            f"this model takes (rank, {target.columns}) and ({target.rows}, rank)"
        )
    if target.swap_halves:
        up = torch.cat(up.chunk(2)[::-1])
    if _ALPHA in keys and reader.read(keys[_ALPHA]).numel() != 1:
        raise CheckpointError(f"{reader.source}: {keys[_ALPHA]} is no single number")
    alpha = float(reader.read(keys[_ALPHA])) if _ALPHA in keys else None
    return Branch(down, up, alphas.scale(module, rank, alpha), target.first_row)


class _Alphas:
    """Scales, as the file's tensors or the metadata of diffusers' adapters tell them."""

    def __init__(self, reader: TensorReader) -> None:
        metadata = reader.metadata if isinstance(reader, SafetensorsFile) else {}
        raw = metadata.get(METADATA_FIELD)
        self._fields: dict[str, Any] = parse_json(raw.encode(), f"{reader.source}: {METADATA_FIELD}") if raw else {}
        self._patterns: dict[str, dict[str, tuple[int, Any]]] = {}

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """alpha: of the module's own tensor, which goes before the metadata."""
        network, _, name = module.partition(".")
        if alpha is None:
            alpha = self._number(network, name)
        root = math.sqrt(rank) if self._fields.get(f"{network}.use_rslora") is True else rank
        return 1.0 if alpha is None else alpha / root

    def _number(self, network: str, name: str) -> float | None:
        """What the metadata says of one module, else of its network. Patterns name a module by the end of its path."""
        patterns, path = self._patterns_of(network), name.split(".")
        ends = (".".join(path[first:]) for first in range(len(path)))
        fitting = [patterns[end] for end in ends if end in patterns]
        alpha = min(fitting)[1] if fitting else self._fields.get(f"{network}.lora_alpha")
        return None if alpha is None else float(alpha)

    def _patterns_of(self, network: str) -> dict[str, tuple[int, Any]]:
        """By the end of a path: the pattern's place in the file, of which the first goes, and its alpha."""
        if network not in self._patterns:
            given = self._fields.get(f"{network}.alpha_pattern")
            found = self._patterns[network] = {}
            for place, (pattern, alpha) in enumerate(given.items() if isinstance(given, dict) else ()):
                found.setdefault(pattern.removeprefix("^"), (place, alpha))
        return self._patterns[network]

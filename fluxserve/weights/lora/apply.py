"""Putting LoRAs to work: merged into weights as they are read, or as side branches of a network. Reads no files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fluxserve.errors import CheckpointError
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader, name_some
from fluxserve.weights.lora.branch import Branch
from fluxserve.weights.lora.file import Branches, Lora

Weighted = Mapping[str, tuple[tuple[Branch, float], ...]]
"""A network's Linears with their branches and the strength of each."""


def weigh(some: Iterable[tuple[Branches, float]]) -> Weighted:
    """Several LoRAs' branches of one network, each with its strength, as one."""
    together: dict[str, tuple[tuple[Branch, float], ...]] = {}
    for branches, strength in some:
        for linear, own in branches.items():
            together[linear] = (*together.get(linear, ()), *((branch, strength) for branch in own))
    return together


class MergedReader:
    """A reader whose matrices and biases hold LoRAs' changes; computed at each read, in float32.

    replaced: what stands in the place of whole tensors. unmerged: the branches of packed matrices, which stay as they
    are, so that these must run beside them.

    Raises:
        CheckpointError: a LoRA changes a bias that is not there, or replaces a tensor of another shape.
    """

    def __init__(self, reader: TensorReader, branches: Weighted, replaced: Mapping[str, Tensor]) -> None:
        self.source, self.files = reader.source, reader.files
        self._reader = reader
        packed = {linear for linear in branches if reader.packed_meta(f"{linear}.weight") is not None}
        self.unmerged: Weighted = {linear: branches[linear] for linear in packed}
        merged = branches.keys() - packed
        self._merged = {f"{linear}.weight": branches[linear] for linear in merged}
        biased = {linear: [pair for pair in branches[linear] if pair[0].bias is not None] for linear in merged}
        self._biases = {f"{linear}.bias": pairs for linear, pairs in biased.items() if pairs}
        self._replaced = replaced
        self._require_place()

    def _require_place(self) -> None:
        absent = sorted(self._biases.keys() - self.keys())
        if absent:
            raise CheckpointError(f"{self.source}: a LoRA changes {name_some(absent)}, which the model has not")
        for key, tensor in self._replaced.items():
            if tensor.shape != self.shape(key):
                raise CheckpointError(
                    f"{self.source}: a LoRA makes {key} {tuple(tensor.shape)}, it is {self.shape(key)}"
                )

    def keys(self) -> Collection[str]:
        return self._reader.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        return self._reader.shape(key)

    def dtype(self, key: str) -> torch.dtype:
        return self._reader.dtype(key)

    def read(self, key: str) -> Tensor:
        weight = self._reader.read(key)
        if key in self._replaced:
            return self._replaced[key].to(weight.dtype)
        if key not in self._merged and key not in self._biases:
            return weight
        wide = weight.to(torch.float32, copy=True)
        for branch, strength in self._merged.get(key, ()):
            branch.add_to(wide, strength)
        for branch, strength in self._biases.get(key, ()):
            assert branch.bias is not None
            wide[branch.rows].add_(branch.bias.float(), alpha=strength * branch.scale)
        return wide.to(weight.dtype)

    def packed(self, key: str) -> PackedWeight | None:
        return self._reader.packed(key)

    def packed_meta(self, key: str) -> PackedWeight | None:
        return self._reader.packed_meta(key)

    def release(self, key: str) -> None:
        self._reader.release(key)


@dataclass(frozen=True)
class LoraHost:
    """A network that branches run beside. dtype: what it computes in."""

    network: nn.Module
    dtype: torch.dtype

    def place(self, linear: str, branch: Branch) -> Branch:
        """A branch where its Linear is, which may be packed."""
        module: Any = self.network.get_submodule(linear)
        return branch.to(module.weight.device, self.dtype)


def placed(lora: Lora, hosts: Mapping[str, LoraHost]) -> Lora:
    """A LoRA on the devices of its networks."""
    branches = {
        name: {linear: tuple(hosts[name].place(linear, branch) for branch in own) for linear, own in linears.items()}
        for name, linears in lora.branches.items()
    }
    return replace(lora, branches=branches)


def attach(host: LoraHost, branches: Weighted) -> None:
    """Adds the branches, wherever they lie, to what the network's Linears give, for good."""
    here = {
        linear: tuple((host.place(linear, branch), strength) for branch, strength in own)
        for linear, own in branches.items()
    }
    _hook(host.network, here)


@contextmanager
def side_branches(network: nn.Module, branches: Weighted) -> Iterator[None]:
    """Adds the branches to what the network's Linears give, for as long as the context lasts.

    The branches lie on the network's device in its compute dtype. A Linear may be packed or streamed: its weight is
    never touched.
    """
    hooks = _hook(network, branches)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(network: nn.Module, branches: Weighted) -> list[RemovableHandle]:
    return [network.get_submodule(linear).register_forward_hook(partial(_add, own)) for linear, own in branches.items()]


def _add(branches: Sequence[tuple[Branch, float]], _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for branch, strength in branches:
        change = branch.answer(inputs[0])
        change = change if branch.bias is None else change + branch.bias
        output[..., branch.rows] += strength * branch.scale * change
    return output

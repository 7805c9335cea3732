"""Puts networks where a plan says: on the device, on the host, or streaming.

What lives where: the device has the small weights and the resident blocks; what a layout keeps on the host is a view of
the file wherever its dtype serves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fluxserve.models.family import BlockLayout
from fluxserve.placement.bind import bind
from fluxserve.placement.copiers import CudaCopier, ThreadCopier
from fluxserve.placement.flat import Weight
from fluxserve.placement.plan import Plan
from fluxserve.placement.shared import SharedWeights
from fluxserve.placement.sources import FileSource, PinnedArena, PinnedSource
from fluxserve.placement.stream import BlockSource, Copier, Slots, StreamedPass
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.tensors.reader import TensorReader


def block_keys(reader: TensorReader, layout: BlockLayout) -> list[dict[str, str]]:
    """For each block in the order of running: its own name of each tensor -> the reader's key."""
    blocks: dict[tuple[int, int], dict[str, str]] = {}
    for key in reader.keys():
        for rank, prefix in enumerate(layout.prefixes):
            if key.startswith(prefix) and not layout.on_host(key):
                number, name = key.removeprefix(prefix).split(".", 1)
                blocks.setdefault((rank, int(number)), {})[name] = key
    return [blocks[place] for place in sorted(blocks)]


def blocks_of(module: nn.Module, layout: BlockLayout) -> list[nn.Module]:
    """The blocks themselves, in the same order."""
    return [block for prefix in layout.prefixes for block in module.get_submodule(prefix.rstrip(".")).children()]


@dataclass(frozen=True)
class KeysByPlace:
    """A blocked network's tensors: those beside its blocks on the device, on the host, and looked up there."""

    device: tuple[str, ...]
    host: tuple[str, ...]
    tables: tuple[str, ...]


def keys_by_place(reader: TensorReader, layout: BlockLayout) -> KeysByPlace:
    """All but the blocks' own."""
    host = tuple(key for key in reader.keys() if layout.on_host(key))
    taken = {*host, *layout.tables}
    device = tuple(key for key in reader.keys() if not key.startswith(layout.prefixes) and key not in taken)
    return KeysByPlace(device, host, tuple(layout.tables))


@dataclass(frozen=True)
class NetworkWeights:
    """What is to be placed of one network. name: by which workers share its weights."""

    name: str
    reader: TensorReader


class Placer:
    """Fills modules built on the meta device, by one plan. placed: called with the bytes of each tensor placed.

    shared: holds what lies on a CPU; None: this process alone does. copier: what moved the streamed weights, for those
    who count; None when everything is resident.
    """

    def __init__(
        self, plan: Plan, device: torch.device, placed: Callable[[int], None], shared: SharedWeights | None = None
    ) -> None:
        self.plan = plan
        self.device = device
        self.placed = placed
        self._shared = shared
        self.copier: Copier | None = None
        self._slots: Slots | None = None
        self._first_pass: StreamedPass | None = None

    def whole(self, module: nn.Module, weights: NetworkWeights, fmt: WeightFormat) -> None:
        """A network without blocks, on the device."""
        self._put(module, weights, {key: key for key in weights.reader.keys()}, fmt)

    def blocked(
        self,
        module: nn.Module,
        weights: NetworkWeights,
        layout: BlockLayout,
        fmt: WeightFormat,
        resident: Collection[int],
    ) -> None:
        """A network whose blocks are on the device, if they are `resident`, or stream through the slots.

        fmt: of its blocks. The denoiser comes first: its first blocks follow the last ones of the others.
        """
        reader = weights.reader
        blocks, keys, places = blocks_of(module, layout), block_keys(reader, layout), keys_by_place(reader, layout)
        self._put(module, weights, {key: key for key in places.device}, fmt.plain)
        self._put_on_host(module, weights, places.host, fmt.plain)
        self._put_tables(module, weights, layout.tables)
        for i in sorted(resident):
            self._put(blocks[i], weights, keys[i], fmt)
        streamed = [i for i in range(len(blocks)) if i not in resident]
        if streamed:
            self._stream([blocks[i] for i in streamed], reader, [keys[i] for i in streamed], fmt)

    def _put(self, module: nn.Module, weights: NetworkWeights, names: Mapping[str, str], fmt: WeightFormat) -> None:
        """On the device. names: the module's names -> the reader's keys."""
        bind(module, {name: self._weight(weights, key, self.device, fmt) for name, key in names.items()})

    def _put_on_host(self, module: nn.Module, weights: NetworkWeights, keys: Iterable[str], fmt: WeightFormat) -> None:
        """Views of the mapped file where its dtype serves; they give their pages back after use if memory is short."""
        for key in keys:
            bind(module, {key: self._weight(weights, key, torch.device("cpu"), fmt)})
            if self.plan.slot_bytes:
                layer = module.get_submodule(key.rpartition(".")[0])
                layer.register_forward_hook(partial(_release, weights.reader, key))

    def _put_tables(self, module: nn.Module, weights: NetworkWeights, tables: Mapping[str, tuple[str, ...]]) -> None:
        """In the file's own dtype: a request reads few of their rows."""
        reader = weights.reader
        for key, others in tables.items():
            meta = torch.empty(reader.shape(key), dtype=reader.dtype(key), device="meta")
            table = self._held(weights, key, meta, partial(reader.read, key))
            bind(module, dict.fromkeys((key, *others), table))
            self.placed(table.nbytes)

    def _stream(
        self, blocks: Sequence[nn.Module], reader: TensorReader, keys: Sequence[Mapping[str, str]], fmt: WeightFormat
    ) -> None:
        sources = [FileSource(reader, names, streamed_format(fmt, self.device)) for names in keys]
        streamed = StreamedPass(blocks, self._on_host(sources), self._shared_slots(), following=self._first_pass)
        self._first_pass = self._first_pass or streamed

    def _on_host(self, sources: Sequence[FileSource]) -> Sequence[BlockSource]:
        """For a GPU, what will be copied again and again is read once into pinned memory."""
        if self.device.type != "cuda":
            return sources
        arena = PinnedArena(sum(source.layout.nbytes for source in sources))
        pinned = []
        for source in sources:
            buffer = arena.take(source.layout.nbytes)
            source.fill(buffer)
            self.placed(buffer.nbytes)
            pinned.append(PinnedSource(source.layout, buffer))
        return pinned

    def _shared_slots(self) -> Slots:
        if self._slots is None:
            self.copier = CudaCopier(self.device) if self.device.type == "cuda" else ThreadCopier()
            self._slots = Slots(self.copier, self.plan.slot_bytes, self.device)
        return self._slots

    def _weight(self, weights: NetworkWeights, key: str, device: torch.device, fmt: WeightFormat) -> Weight:
        """Where it is no view of the file, the pages it was made from go back; of a view none have been read yet."""
        reader, read = weights.reader, partial(fmt.read, weights.reader, key, device)
        weight = self._held(weights, key, fmt.meta(reader, key), read) if device.type == "cpu" else read()
        reader.release(key)
        self.placed(weight.nbytes)
        return weight

    def _held(self, weights: NetworkWeights, key: str, meta: Weight, read: Callable[[], Weight]) -> Weight:
        return read() if self._shared is None else self._shared.hold(weights.name, key, meta, read)


def streamed_format(fmt: WeightFormat, device: torch.device) -> WeightFormat:
    """A GPU streams what has been packed once; a CPU reads the file anew each time, where packing would only cost.

    For 8-bit arithmetic a CPU packs it each time.
    """
    return fmt if device.type == "cuda" else fmt.unpacked


def _release(reader: TensorReader, key: str, *_: object) -> None:
    reader.release(key)

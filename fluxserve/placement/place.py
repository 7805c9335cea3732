"""Puts networks where a plan says: on the device, on the host, or streaming. Knows no requests and no arithmetic.

What lives where: the device has the small weights and the resident blocks; the modulation, with the time, guidance and
vector embedders, and T5's embedding table stay on the host, as views of the file wherever its dtype serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from transformers import T5EncoderModel

from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.placement.bind import bind
from fluxserve.placement.copiers import CudaCopier, ThreadCopier
from fluxserve.placement.flat import Weight
from fluxserve.placement.plan import Plan
from fluxserve.placement.sources import FileSource, PinnedArena, PinnedSource
from fluxserve.placement.stream import BlockSource, Copier, Slots, StreamedPass
from fluxserve.placement.weight_format import Form
from fluxserve.tensors.reader import TensorReader

HOST_PREFIXES = ("time_in.", "vector_in.", "guidance_in.", "final_layer.adaLN_modulation.")
HOST_PARTS = (".img_mod.", ".txt_mod.", ".modulation.")
BLOCK_PREFIXES = ("double_blocks.", "single_blocks.")


def is_modulation(key: str) -> bool:
    """Whether a transformer's tensor is used in `begin` alone."""
    return key.startswith(HOST_PREFIXES) or any(part in key for part in HOST_PARTS)


def block_keys(reader: TensorReader) -> list[dict[str, str]]:
    """For each transformer block in order: its own name of each tensor but the modulation's -> the reader's key."""
    blocks: dict[tuple[str, int], dict[str, str]] = {}
    for key in reader.keys():
        if key.startswith(BLOCK_PREFIXES) and not is_modulation(key):
            kind, number, name = key.split(".", 2)
            blocks.setdefault((kind, int(number)), {})[name] = key
    return [blocks[place] for place in sorted(blocks)]  # "double_blocks" comes before "single_blocks"


def t5_block_keys(reader: TensorReader) -> list[dict[str, str]]:
    """As `block_keys`, for a T5 encoder."""
    blocks: dict[int, dict[str, str]] = {}
    for key in reader.keys():
        if key.startswith("encoder.block."):
            _, _, number, name = key.split(".", 3)
            blocks.setdefault(int(number), {})[name] = key
    return [blocks[number] for number in sorted(blocks)]


class Placer:
    """Fills modules built on the meta device, by one plan.

    form: of the transformer's blocks; of T5's with its own dtype. placed: called with the bytes of each tensor placed.

    copier: what moved the streamed weights, for those who count; None when everything is resident.
    """

    def __init__(self, plan: Plan, device: torch.device, form: Form, placed: Callable[[int], None]) -> None:
        self.plan = plan
        self.device = device
        self.form = form
        self.placed = placed
        self.copier: Copier | None = None
        self._slots: Slots | None = None
        self._image_pass: StreamedPass | None = None

    def put(self, module: nn.Module, reader: TensorReader, names: Mapping[str, str], form: Form) -> None:
        """On the device. names: the module's names -> the reader's keys."""
        bind(module, {name: self._weight(reader, key, self.device, form) for name, key in names.items()})

    def transformer(self, module: FluxTransformer, reader: TensorReader) -> None:
        """All of it, as planned."""
        blocks, keys = [*module.double_blocks, *module.single_blocks], block_keys(reader)
        host = [key for key in reader.keys() if is_modulation(key)]
        small = [key for key in reader.keys() if not key.startswith(BLOCK_PREFIXES) and key not in host]
        self.put(module, reader, {key: key for key in small}, Form(self.form.dtype))
        self._put_on_host(module, reader, host)
        for i in self.plan.resident:
            self.put(blocks[i], reader, keys[i], self.form)
        streamed = [blocks[i] for i in self.plan.streamed]
        self._image_pass = self._stream(streamed, reader, [keys[i] for i in self.plan.streamed], self.form)

    def t5(self, module: T5EncoderModel, reader: TensorReader, form: Form) -> None:
        """After the transformer, whose first blocks follow the encoder's last ones through the slots."""
        blocks, keys = list(module.encoder.block), t5_block_keys(reader)
        table = reader.read("shared.weight")
        bind(module, {"shared.weight": table, "encoder.embed_tokens.weight": table})
        norm = "encoder.final_layer_norm.weight"
        self.put(module, reader, {norm: norm}, form)
        if self.plan.t5 == "resident":
            for block, names in zip(blocks, keys, strict=True):
                self.put(block, reader, names, form)
        else:
            self._stream(blocks, reader, keys, form)

    def _put_on_host(self, module: nn.Module, reader: TensorReader, keys: Sequence[str]) -> None:
        """Views of the mapped file where its dtype serves; they give their pages back after use if memory is short."""
        for key in keys:
            weight = self._weight(reader, key, torch.device("cpu"), Form(self.form.dtype))
            bind(module, {key: weight})
            if self.plan.slot_bytes:
                layer = module.get_submodule(key.rpartition(".")[0])
                layer.register_forward_hook(partial(_release, reader, key))

    def _stream(
        self, blocks: Sequence[nn.Module], reader: TensorReader, keys: Sequence[Mapping[str, str]], form: Form
    ) -> StreamedPass | None:
        if not blocks:
            return None
        sources = [FileSource(reader, names, streamed_form(form, self.device)) for names in keys]
        return StreamedPass(blocks, self._on_host(sources), self._shared_slots(), following=self._image_pass)

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

    def _weight(self, reader: TensorReader, key: str, device: torch.device, form: Form) -> Weight:
        """Where it is no view of the file, the pages it was made from go back; of a view none have been read yet."""
        weight = form.read(reader, key, device)
        reader.release(key)
        self.placed(weight.nbytes)
        return weight


def streamed_form(form: Form, device: torch.device) -> Form:
    """A GPU streams what has been packed once; a CPU reads the file anew each time, where packing would only cost."""
    return form if device.type == "cuda" else Form(form.dtype)


def _release(reader: TensorReader, key: str, *_: object) -> None:
    reader.release(key)

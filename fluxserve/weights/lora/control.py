"""Control LoRAs (FLUX.1 Canny and Depth): what they make of a model before its matrices are changed.

The denoiser's input is widened by columns of zeros, which the LoRA then fills, and the model becomes another variant.
Follows black-forest-labs/flux `src/flux/util.py` `load_flow_model` and `src/flux/modules/lora.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.family import Component, Told
from fluxserve.models.lora_keys import CONTROL, is_control, parse_key
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import Checkpoint
from fluxserve.weights.files.identify import open_file

CONTROL_SCALE = 0.85
"""Of a control LoRA for which no strength is given; BFL's own."""


class WidenedReader:
    """A reader one matrix of which has further columns, all zero; it is never packed."""

    def __init__(self, reader: TensorReader, key: str, columns: int) -> None:
        self.source, self.files = reader.source, reader.files
        self._reader = reader
        self._key = key
        self._columns = columns

    def keys(self) -> Collection[str]:
        return self._reader.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        shape = self._reader.shape(key)
        return (shape[0], self._columns) if key == self._key else shape

    def dtype(self, key: str) -> torch.dtype:
        return self._reader.dtype(key)

    def read(self, key: str) -> Tensor:
        weight = self._reader.read(key)
        return F.pad(weight, (0, self._columns - weight.shape[1])) if key == self._key else weight

    def packed(self, key: str) -> PackedWeight | None:
        return None if key == self._key else self._reader.packed(key)

    def packed_meta(self, key: str) -> PackedWeight | None:
        return None if key == self._key else self._reader.packed_meta(key)

    def release(self, key: str) -> None:
        self._reader.release(key)


def as_control_model(checkpoint: Checkpoint, files: Sequence[Path]) -> Checkpoint:
    """The model as the one control LoRA among the files needs it; the same without one.

    Raises:
        CheckpointError: there are several, or none fits this model.
    """
    controls = [path for path in files if is_control(open_file(path).keys())]
    if not controls:
        return checkpoint
    if len(controls) > 1:
        raise CheckpointError(f"{controls[1]}: is {CONTROL}, and so is {controls[0]}; one at a time can be given")
    control, (path,) = checkpoint.architecture.control, controls
    if control is None:
        raise CheckpointError(f"{path}: is {CONTROL}, which this model has no place for")
    key, name = f"{control.input}.weight", checkpoint.denoiser.name
    columns = _columns(open_file(path), checkpoint)
    reader = checkpoint.readers[name]
    if columns <= reader.shape(key)[1]:  # a control model already, or what does not fit and will be told so
        return checkpoint
    widened = WidenedReader(reader, key, columns)
    return replace(
        checkpoint,
        variant=checkpoint.family.variant(Component(widened, {}), Told(name=path.stem)),
        architecture=checkpoint.architecture.widened(columns),
        readers={**checkpoint.readers, name: widened},
    )


def _columns(lora: TensorReader, checkpoint: Checkpoint) -> int:
    """How many inputs the denoiser's first Linear has in the file; 0 where the file leaves it alone."""
    control, targets = checkpoint.architecture.control, checkpoint.architecture.lora_targets()
    for key in lora.keys():
        module, kind = parse_key(key) or (key, None)
        target = targets.get(module)
        if (
            kind == "down"
            and control
            and target
            and (target.network, target.linear) == (checkpoint.denoiser.name, control.input)
        ):
            return lora.shape(key)[-1]
    return 0

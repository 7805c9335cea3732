"""The two spellings of q and k norms in files of BFL's names."""

from __future__ import annotations

from fluxserve.tensors.reader import TensorReader, renamed

_AS_WEIGHTS = (".query_norm.weight", ".key_norm.weight")
"""As ComfyUI saves what BFL calls `.scale`."""


def with_scales(reader: TensorReader) -> TensorReader:
    """A stray spelling beside the right one keeps its name, and is refused by the strict check."""
    scales = {key: f"{key.removesuffix('weight')}scale" for key in reader.keys() if key.endswith(_AS_WEIGHTS)}
    names = {(scales[key] if scales.get(key, key) not in reader.keys() else key): key for key in reader.keys()}
    return renamed(reader, names) if scales else reader

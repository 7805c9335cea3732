"""Two spellings of a transformer: which of diffusers' layers make up one of the published single file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxserve.tensors.reader import Operation, Recipe, TensorReader, renamed

Layers = Mapping[str, tuple[str, ...]]
"""A layer's own name, and diffusers' names of those that it is stacked of on its rows."""

_AS_WEIGHTS = (".query_norm.weight", ".key_norm.weight")
"""As ComfyUI saves what BFL calls `.scale`."""


def numbered(ours: str, theirs: str, count: int, layers: Layers) -> dict[str, tuple[str, ...]]:
    """The layers of `count` blocks. ours, theirs: what the blocks' numbers stand behind."""
    return {
        f"{ours}.{block}.{name}": tuple(f"{theirs}.{block}.{part}" for part in parts)
        for block in range(count)
        for name, parts in layers.items()
    }


def tensor_recipes(layers: Layers, kinds: Sequence[str], swapped: str = "") -> dict[str, Recipe]:
    """The tensors of layers. kinds: such as weight and bias. swapped: the layer whose halves diffusers exchanges."""
    recipes: dict[str, Recipe] = {}
    for name, parts in layers.items():
        op: Operation = "swap_halves" if name == swapped else "rows"
        recipes |= {f"{name}.{kind}": Recipe(tuple(f"{part}.{kind}" for part in parts), op) for kind in kinds}
    return recipes


def scale_recipes(layers: Layers) -> dict[str, Recipe]:
    """Those of norms, which BFL's files call `scale`."""
    return {f"{name}.scale": Recipe((f"{part}.weight",)) for name, (part,) in layers.items()}


def with_scales(reader: TensorReader) -> TensorReader:
    """Norms of q and k as BFL names them. A stray spelling beside the right one is refused by the strict check."""
    scales = {key: f"{key.removesuffix('weight')}scale" for key in reader.keys() if key.endswith(_AS_WEIGHTS)}
    names = {(scales[key] if scales.get(key, key) not in reader.keys() else key): key for key in reader.keys()}
    return renamed(reader, names) if scales else reader

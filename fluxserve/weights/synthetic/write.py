"""Models of seeded random weights, written to disk tensor by tensor: for tests, benches and people without the weights.

The same seed gives the same tensors in either layout. Their pictures are noise.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fluxserve.errors import ConfigError
from fluxserve.models import registry
from fluxserve.models.synthetic import Layout, Packing, SyntheticModel, SyntheticNetwork
from fluxserve.weights.files.gguf_writer import write_gguf
from fluxserve.weights.files.safetensors_writer import write_shards
from fluxserve.weights.synthetic.tensors import draw, specs, stored

SHARD_BYTES = 10_000_000_000
DISK_MARGIN_BYTES = 100_000_000
DEMO_REVISION = 2
"""Raised when the untrained demo's weights change, so that older ones in the cache are left alone."""


def write_model(folder: Path, size: str, variant: str, layout: Layout, seed: int, packing: Packing = "bf16") -> None:
    """A complete model of the variant's family in an empty or new folder. size: one of its family's `sizes`.

    Raises:
        ConfigError: the folder holds something, the disk is too small, or the layout cannot hold the packing.
    """
    if packing == "q4_0" and layout != "bfl":
        raise ConfigError("q4_0 makes GGUF files, which are single files: use --layout bfl")
    write_networks(folder, registry.family_of_variant(variant).synthetic(size, variant, layout, packing), seed)


def write_networks(folder: Path, model: SyntheticModel, seed: int) -> None:
    """What a family has laid out. Raises: as `write_model`."""
    _require_room(folder, sum(spec.nbytes for network in model.networks for spec in specs(network).values()))
    for network in model.networks:
        _write_network(folder, network, seed)
    for name, write_tokenizer in model.tokenizers.items():
        write_tokenizer(folder / name)
    for path, content in model.files.items():
        _write_json(folder / path, content)


def cached_model(assets: Path, variant: str) -> Path:
    """The folder of a tiny model of a variant, made on first use. Safe when several processes come at once.

    Raises:
        OSError: `assets` cannot be written.
    """
    target = assets / f"{variant}-{DEMO_REVISION}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=assets) as scratch:
        made = Path(scratch) / "model"
        write_model(made, "tiny", variant, "diffusers", seed=0)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    return target


def _write_network(folder: Path, network: SyntheticNetwork, seed: int) -> None:
    target = folder / network.folder
    target.mkdir(parents=True, exist_ok=True)
    tensors = stored(network, partial(draw, network, seed))
    if network.packing == "q4_0":
        write_gguf(target / network.filename, network.gguf_architecture, specs(network), tensors)
    else:
        write_shards(target, network.filename, specs(network), tensors, SHARD_BYTES)
    config = "config.json" if network.folder else Path(network.filename).stem + ".json"
    _write_json(target / config, network.config)


def _require_room(folder: Path, needed_bytes: int) -> None:
    """Makes the folder; it must be empty, on a disk with room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}") from error
    if occupied:
        raise ConfigError(f"{folder}: is not empty; name a new folder")
    free = shutil.disk_usage(folder).free
    if needed_bytes + DISK_MARGIN_BYTES > free:
        raise ConfigError(
            f"{folder}: the model takes {needed_bytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free"
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

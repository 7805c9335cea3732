"""Models of seeded random weights, written to disk tensor by tensor: for tests, benches and people without the weights.

The same seed gives the same tensors in either layout. Their pictures are noise. Knows no devices.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fluxserve.errors import ConfigError
from fluxserve.models.flux1 import configs as configs
from fluxserve.models.flux1 import names as diffusers
from fluxserve.models.flux1.shapes import autoencoder_shapes, transformer_shapes
from fluxserve.models.flux1.sizes import TINY, ModelSizes
from fluxserve.models.flux1.text_names import clip_recipes, clip_shapes, t5_gguf_recipes, t5_recipes, t5_shapes
from fluxserve.models.flux1.toy_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from fluxserve.weights.files.folder import WEIGHT_NAMES
from fluxserve.weights.files.gguf_writer import write_gguf
from fluxserve.weights.files.identify import Part
from fluxserve.weights.files.safetensors_writer import write_shards
from fluxserve.weights.synthetic.tensors import Network, Packing, as_named, draw, specs, stored

Layout = Literal["diffusers", "bfl"]

GGUF_ARCHITECTURES: dict[Part, str] = {"transformer": "flux", "t5": "t5encoder"}
SHARD_BYTES = 10_000_000_000
DISK_MARGIN_BYTES = 100_000_000
DEMO_REVISION = 2
"""Raised when the untrained demo's weights change, so that older ones in the cache are left alone."""


def write_model(
    folder: Path, sizes: ModelSizes, variant: str, layout: Layout, seed: int, packing: Packing = "bf16"
) -> None:
    """A complete model in an empty or new folder. variant: `schnell`, `dev`, or another name in VARIANTS.

    Raises:
        ConfigError: the folder holds something, the disk is too small, or the layout cannot hold the packing.
    """
    if packing == "q4_0" and layout != "bfl":
        raise ConfigError("q4_0 makes GGUF files, which are single files: use --layout bfl")
    sizes = replace(sizes, transformer=replace(sizes.transformer, guidance_embed=variant == "dev"))
    networks = _diffusers_networks(sizes, packing) if layout == "diffusers" else _bfl_networks(sizes, variant, packing)
    _require_room(folder, sum(spec.nbytes for network in networks for spec in specs(network).values()))
    for network in networks:
        _write_network(folder, network, seed)
    write_clip_tokenizer(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2")
    if layout == "diffusers":
        _write_json(folder / "scheduler" / "scheduler_config.json", configs.scheduler(variant))
        _write_json(folder / "model_index.json", configs.model_index(variant))


def untrained_demo(assets: Path) -> Path:
    """The folder of the untrained demo, made on first use. Safe when several processes come at once.

    Raises:
        OSError: `assets` cannot be written.
    """
    target = assets / f"demo-untrained-{DEMO_REVISION}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=assets) as scratch:
        made = Path(scratch) / "model"
        write_model(made, TINY, "demo-untrained", "diffusers", seed=0)
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    return target


def _write_network(folder: Path, network: Network, seed: int) -> None:
    home = folder / network.folder
    home.mkdir(parents=True, exist_ok=True)
    tensors = stored(network, partial(draw, network, seed))
    if network.packing == "q4_0":
        write_gguf(home / network.filename, GGUF_ARCHITECTURES[network.part], specs(network), tensors)
    else:
        write_shards(home, network.filename, specs(network), tensors, SHARD_BYTES)
    config = "config.json" if network.folder else Path(network.filename).stem + ".json"
    _write_json(home / config, network.config)


def _diffusers_networks(sizes: ModelSizes, packing: Packing) -> list[Network]:
    flux, ae, t5, clip = sizes.transformer, sizes.autoencoder, sizes.t5, sizes.clip
    recipes = diffusers.transformer_recipes(flux.depth, flux.depth_single_blocks, flux.guidance_embed)
    ae_recipes = diffusers.autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks)
    flux_name, text_name = WEIGHT_NAMES
    return [
        Network(
            "transformer", "transformer", flux_name, transformer_shapes(flux), recipes, configs.flux(flux), packing
        ),
        Network("autoencoder", "vae", flux_name, autoencoder_shapes(ae), ae_recipes, configs.vae(ae)),
        Network("clip", "text_encoder", text_name, clip_shapes(clip), clip_recipes(clip), configs.clip(clip)),
        Network("t5", "text_encoder_2", text_name, t5_shapes(t5), t5_recipes(t5), configs.t5(t5), packing),
    ]


def _bfl_networks(sizes: ModelSizes, variant: str, packing: Packing) -> list[Network]:
    flux, ae, t5, clip = sizes.transformer, sizes.autoencoder, sizes.t5, sizes.clip
    ending = {"bf16": ".safetensors", "fp8": "-fp8.safetensors", "q4_0": "-Q4_0.gguf"}[packing]
    t5_names = t5_gguf_recipes(t5) if packing == "q4_0" else t5_recipes(t5)
    flux_shapes, ae_shapes = transformer_shapes(flux), autoencoder_shapes(ae)
    flux_name = f"flux1-{variant}{ending}"
    return [
        Network("transformer", "", flux_name, flux_shapes, as_named(flux_shapes), configs.flux(flux), packing),
        Network("autoencoder", "", "ae.safetensors", ae_shapes, as_named(ae_shapes), configs.vae(ae)),
        Network("clip", "", "clip_l.safetensors", clip_shapes(clip), clip_recipes(clip), configs.clip(clip)),
        Network("t5", "", f"t5xxl{ending}", t5_shapes(t5), t5_names, configs.t5(t5), packing),
    ]


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

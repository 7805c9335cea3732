"""Models of seeded random weights, written to disk tensor by tensor: for tests, benches and people without the weights.

The same seed gives the same tensors in either layout. Their pictures are noise. Knows no devices.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fluxserve.errors import ConfigError
from fluxserve.weights import diffusers, synthetic_configs
from fluxserve.weights.identify import Part
from fluxserve.weights.reader import Recipe
from fluxserve.weights.safetensors_writer import TensorSpec, write_shards
from fluxserve.weights.shapes import autoencoder_shapes, transformer_shapes
from fluxserve.weights.synthetic_sizes import TINY, ModelSizes
from fluxserve.weights.text_models import CLIP_PREFIX, clip_shapes, t5_shapes
from fluxserve.weights.toy_tokenizers import write_clip_tokenizer, write_t5_tokenizer

Layout = Literal["diffusers", "bfl"]
Draw = Callable[[str, tuple[int, ...]], Tensor]

DTYPE = torch.bfloat16
SHARD_BYTES = 10_000_000_000
DISK_MARGIN_BYTES = 100_000_000
BIAS_SCALE = 0.02
NORM_SPREAD = 0.1
DEMO_REVISION = 2
"""Raised when the untrained demo's weights change, so that older ones in the cache are left alone."""


@dataclass(frozen=True)
class Network:
    """One network to write. recipes: how its canonical tensors (shapes) are made of those in the file."""

    part: Part
    folder: str
    filename: str
    shapes: Mapping[str, tuple[int, ...]]
    recipes: Mapping[str, Recipe]
    config: Mapping[str, Any]


def write_model(folder: Path, sizes: ModelSizes, variant: str, layout: Layout, seed: int) -> None:
    """A complete model in an empty or new folder. variant: `schnell`, `dev`, or another name in VARIANTS.

    Raises:
        ConfigError: the folder holds something, or the disk is too small.
    """
    sizes = replace(sizes, transformer=replace(sizes.transformer, guidance_embed=variant == "dev"))
    networks = _diffusers_networks(sizes) if layout == "diffusers" else _bfl_networks(sizes, variant)
    _require_room(folder, sum(spec.nbytes for network in networks for spec in _specs(network).values()))
    for network in networks:
        _write_network(folder, network, seed)
    write_clip_tokenizer(folder / "tokenizer")
    write_t5_tokenizer(folder / "tokenizer_2")
    if layout == "diffusers":
        _write_json(folder / "scheduler" / "scheduler_config.json", synthetic_configs.scheduler(variant))
        _write_json(folder / "model_index.json", synthetic_configs.model_index(variant))


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

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        return _random(network, name, shape, seed)

    write_shards(home, network.filename, _specs(network), _stored(network, draw), SHARD_BYTES)
    if network.config:
        config = "config.json" if network.folder else Path(network.filename).stem + ".json"
        _write_json(home / config, network.config)


def _specs(network: Network) -> dict[str, TensorSpec]:
    stored = _stored(network, lambda _, shape: torch.empty(shape, dtype=DTYPE, device="meta"))
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in stored}


def _stored(network: Network, draw: Draw) -> Iterator[tuple[str, Tensor]]:
    """The tensors as the file names and cuts them: the recipes backwards."""
    for key, shape in network.shapes.items():
        recipe, tensor = network.recipes[key], draw(key, shape)
        if recipe.op == "swap_halves":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        elif recipe.op == "conv1x1":
            tensor = tensor[..., 0, 0]
        yield from zip(recipe.parts, tensor.split(_rows(network, recipe, shape)), strict=True)


def _rows(network: Network, recipe: Recipe, shape: tuple[int, ...]) -> list[int]:
    """How many rows each part has: q, k and v are as wide as the model, the last part takes the rest."""
    width = network.shapes["img_in.weight"][0] if len(recipe.parts) > 1 else 0
    return [width] * (len(recipe.parts) - 1) + [shape[0] - width * (len(recipe.parts) - 1)]


def _random(network: Network, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Values that keep a random model's activations near 1, from a generator of the tensor's own."""
    digest = hashlib.sha256(f"{seed}/{network.part}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return noise.mul_(BIAS_SCALE).to(DTYPE)
    if len(shape) == 1:
        return noise.mul_(NORM_SPREAD).add_(1.0).to(DTYPE)
    return noise.mul_(_scale(network, name, shape)).to(DTYPE)


def _scale(network: Network, name: str, shape: tuple[int, ...]) -> float:
    fan_in = torch.Size(shape[1:]).numel()
    if name in ("shared.weight", "embeddings.token_embedding.weight"):
        return 1.0
    if name.endswith(("position_embedding.weight", "relative_attention_bias.weight")):
        return NORM_SPREAD
    if network.part == "t5" and name.endswith("SelfAttention.q.weight"):
        return float((fan_in * synthetic_configs.d_kv(network.config)) ** -0.5)  # T5 divides by no root of d_kv
    return float(fan_in**-0.5)


def _diffusers_networks(sizes: ModelSizes) -> list[Network]:
    flux, ae = sizes.transformer, sizes.autoencoder
    recipes = diffusers.transformer_recipes(flux.depth, flux.depth_single_blocks, flux.guidance_embed)
    ae_recipes = diffusers.autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks)
    weights = "diffusion_pytorch_model.safetensors"
    return [
        Network("transformer", "transformer", weights, transformer_shapes(flux), recipes, synthetic_configs.flux(flux)),
        Network("autoencoder", "vae", weights, autoencoder_shapes(ae), ae_recipes, synthetic_configs.vae(ae)),
        *_text_networks(sizes, ("text_encoder", "model.safetensors"), ("text_encoder_2", "model.safetensors")),
    ]


def _bfl_networks(sizes: ModelSizes, variant: str) -> list[Network]:
    flux, ae = transformer_shapes(sizes.transformer), autoencoder_shapes(sizes.autoencoder)
    name = f"flux1-{variant}.safetensors"
    return [
        Network("transformer", "", name, flux, _as_named(flux), synthetic_configs.flux(sizes.transformer)),
        Network("autoencoder", "", "ae.safetensors", ae, _as_named(ae), synthetic_configs.vae(sizes.autoencoder)),
        *_text_networks(sizes, ("", "clip_l.safetensors"), ("", "t5xxl.safetensors")),
    ]


def _text_networks(sizes: ModelSizes, clip_home: tuple[str, str], t5_home: tuple[str, str]) -> list[Network]:
    clip, t5 = clip_shapes(sizes.clip), t5_shapes(sizes.t5)
    prefixed = {key: Recipe((CLIP_PREFIX + key,)) for key in clip}
    return [
        Network("clip", *clip_home, clip, prefixed, synthetic_configs.clip(sizes.clip)),
        Network("t5", *t5_home, t5, _as_named(t5), synthetic_configs.t5(sizes.t5)),
    ]


def _as_named(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Recipe]:
    return {key: Recipe((key,)) for key in shapes}


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

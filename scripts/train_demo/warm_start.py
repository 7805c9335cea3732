"""Takes an exported model folder back into the state folder, so that training goes on from committed weights.

The optimizers start anew, and so does what reads from the text encoders.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from fluxserve.models.companions.flux1_autoencoder import Autoencoder
from fluxserve.models.flux1 import names as diffusers
from fluxserve.models.flux1.text.names import CLIP_PREFIX, T5_EMBEDDING, T5_TIED_EMBEDDING
from fluxserve.models.parts.autoencoder_names import autoencoder_recipes
from fluxserve.tensors.reader import Recipe
from scripts.train_demo import checkpoint, codes, sizes
from scripts.train_demo.autoencoder import painted
from scripts.train_demo.encoders import scaled_stream
from scripts.train_demo.latents import fit_to

WEIGHTS = "diffusion_pytorch_model.safetensors"


def take(model: Path, state: Path, pictures: NDArray[np.uint8]) -> None:
    """Fills an empty state folder; does nothing where a transformer is there already."""
    if (state / "transformer.pt").exists():
        return
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(model / name, state / name, dirs_exist_ok=True)
    flux, ae = sizes.TRANSFORMER, sizes.AUTOENCODER
    recipes = diffusers.transformer_recipes(flux.depth, flux.depth_single_blocks, flux.guidance_embed)
    transformer = _joined(load_file(model / "transformer" / WEIGHTS), recipes)
    ae_recipes = autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks)
    autoencoder = _joined(load_file(model / "vae" / WEIGHTS), ae_recipes)
    checkpoint.save(state / "autoencoder.pt", {"model": autoencoder, "step": 0})
    encoders = _encoders(model)
    for name, weights in encoders.items():
        checkpoint.save(state / f"{name}.pt", {name: weights, "step": 0})
    shutil.copy(codes.SHIPPED, state / codes.FILE)
    _fit_to(autoencoder, state, pictures)
    t5 = {"t5": encoders["t5"], "averaged_t5": encoders["t5"], "t5_step": 0}
    checkpoint.save(state / "transformer.pt", {"model": transformer, "averaged": transformer, "step": 0, **t5})


def _joined(stored: dict[str, Tensor], recipes: dict[str, Recipe]) -> dict[str, Tensor]:
    """The tensors under BFL's names, float32; recipes of shortcuts that the widths do not need are left out."""
    joined = {}
    for key, recipe in recipes.items():
        if recipe.parts[0] not in stored:
            continue
        tensor = torch.cat([stored[part].float() for part in recipe.parts])
        if recipe.op == "swap_halves":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        joined[key] = tensor[..., None, None] if recipe.op == "conv1x1" else tensor
    return joined


def _encoders(model: Path) -> dict[str, dict[str, Tensor]]:
    """Of CLIP and T5."""
    clip = load_file(model / "text_encoder" / "model.safetensors")
    t5 = load_file(model / "text_encoder_2" / "model.safetensors")
    trained = {key.removeprefix(CLIP_PREFIX): value.float() for key, value in clip.items()}
    return {
        "clip": scaled_stream(trained, 1 / sizes.CLIP_STREAM),
        "t5": {key: value.float() for key, value in t5.items()} | {T5_TIED_EMBEDDING: t5[T5_EMBEDDING].float()},
    }


@torch.no_grad()
def _fit_to(weights: dict[str, Tensor], state: Path, pictures: NDArray[np.uint8]) -> None:
    """The latent space again, from the encoder that learned it: principal components may turn with the pictures."""
    model, pixels = Autoencoder(sizes.AUTOENCODER), painted(pictures, 200)
    model.load_state_dict(weights)
    fit_to(pixels, torch.cat([model.encode(part) for part in pixels.split(20)])).save(state / "latents.safetensors")

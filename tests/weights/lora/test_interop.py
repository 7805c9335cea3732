"""What diffusers and fluxserve do with kinds of LoRA files: docs/interop_files.md, row by row, by running them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import FLUX1, TINY
from fluxserve.models.lora_target import LoraTarget
from fluxserve.weights.lora.file import read_lora
from tests.interop_files import LORA_FILES, Seen
from tests.weights.lora.test_lora import RANK, matrices

ALPHA = 2.0
WIDE = replace(FLUX1, depth=1, depth_single_blocks=1, guidance_embed=True)
TARGETS = lora_targets(replace(TINY, transformer=WIDE))
BLOCKS = ("double_blocks_0_img_attn_qkv", "double_blocks_0_txt_mlp_0", "single_blocks_0_linear2")
OUTER = ("img_in", "txt_in", "time_in_in_layer", "final_layer_linear", "final_layer_adaLN_modulation_1")
PARTS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2", "single_transformer_blocks.0.proj_out")
T5_LINEAR = "encoder_block_0_layer_0_SelfAttention_q"


def low_rank(modules: list[str], down: str, up: str, alpha: float | None = None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in modules:
        tensors[f"{module}.{down}.weight"], tensors[f"{module}.{up}.weight"] = matrices(TARGETS[module], module)
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya(*modules: str) -> dict[str, Tensor]:
    return low_rank(list(modules), "lora_down", "lora_up", ALPHA)


def peft(prefix: str, modules: tuple[str, ...] = PARTS, down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    return low_rank([prefix + module for module in modules], down, up)


UNET = [f"lora_unet_{module}" for module in BLOCKS]
MIXTURE = [
    f"lora_transformer_{name}" for name in ("transformer_blocks_0_attn_to_q", "single_transformer_blocks_0_attn_to_k")
]
COMFY = [f"diffusion_model.{name}" for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear2")]
PROCESSORS = [f"double_blocks.0.processor.{name}" for name in ("qkv_lora1", "proj_lora2")]
LOKR = {"lokr_w1": torch.ones(4, 4), "lokr_w2": torch.ones(2304, 768), "alpha": torch.tensor(1.0)}
CONFIG = {"r": RANK, "lora_alpha": ALPHA}

FILES: dict[str, dict[str, Tensor]] = {
    "sd-scripts: blocks": kohya(*UNET),
    "sd-scripts: blocks, embedders and final layer": kohya(*UNET, *(f"lora_unet_{module}" for module in OUTER)),
    "sd-scripts: blocks, and T5 as `lora_te3_`": kohya(*UNET, f"lora_te3_{T5_LINEAR}"),
    "sd-scripts' names, LoKr": {f"{UNET[0]}.{name}": tensor for name, tensor in LOKR.items()},
    "OneTrainer: attention": kohya(*MIXTURE),
    "OneTrainer: attention, and T5 as `lora_te2_`": kohya(*MIXTURE, f"lora_te2_{T5_LINEAR}"),
    "OneTrainer: attention, and words in `bundle_emb.`": kohya(*MIXTURE) | {"bundle_emb.a.t5": torch.ones(2, 4)},
    "BFL's names under `diffusion_model.`, `lora_A`": low_rank(COMFY, "lora_A", "lora_B"),
    "XLabs": low_rank(PROCESSORS, "down", "up"),
    "diffusers: metadata": peft("transformer."),
    "diffusers: no metadata": peft("transformer."),
    "`lora_down` and `.alpha` under `transformer.`": low_rank(
        [f"transformer.{part}" for part in PARTS], "lora_down", "lora_up", ALPHA
    ),
    "peft: `adapter_model.safetensors`, `adapter_config.json`": peft("base_model.model."),
}


def written(name: str, folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    metadata = {f"transformer.{key}": value for key, value in CONFIG.items()}
    told = {"lora_adapter_metadata": json.dumps(metadata)} if name == "diffusers: metadata" else None
    save_file(FILES[name], path, metadata=told)
    if name.startswith("peft"):
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"peft_type": "LORA"}))
    return path


Changes = Mapping[tuple[str, str], Tensor]
"""(network, Linear) -> what is added to its answer to a probe."""


def probe(columns: int) -> Tensor:
    return torch.randn(columns, 2, generator=torch.Generator().manual_seed(1))


def added(some: list[tuple[LoraTarget, Tensor, Tensor, float]]) -> Changes:
    changes: dict[tuple[str, str], Tensor] = {}
    for target, down, up, scale in some:
        rows = TARGETS[target.linear].rows if target.network == "transformer" else target.rows
        total = changes.setdefault((target.network, target.linear), torch.zeros(rows, 2))
        up = torch.cat(up.chunk(2)[::-1]) if target.swap_halves else up
        total[target.first_row : target.first_row + len(up)] += scale * (up @ (down @ probe(target.columns)))
    return changes


def by_diffusers(path: Path) -> Changes:
    state, alphas, metadata = FluxPipeline.lora_state_dict(
        str(path.parent), weight_name=path.name, return_alphas=True, return_lora_metadata=True
    )
    some = []
    for key, down in state.items():
        module = key.removesuffix(".lora_A.weight")
        if key.startswith("transformer.") and key.endswith(".lora_A.weight"):
            alpha = (alphas or {}).get(f"{module}.alpha", (metadata or {}).get("transformer.lora_alpha", down.shape[0]))
            some.append((TARGETS[module], down, state[f"{module}.lora_B.weight"], float(alpha) / down.shape[0]))
    return added(some)


def by_fluxserve(path: Path) -> Changes:
    lora = read_lora(path, TARGETS)
    changes: dict[tuple[str, str], Tensor] = {}
    for network, linears in lora.branches.items():
        for linear, branches in linears.items():
            for branch in branches:
                target = LoraTarget(network, linear, branch.first_row, len(branch.up), branch.down.shape[1])
                for place, change in added([(target, branch.down, branch.up, branch.scale)]).items():
                    changes[place] = changes.get(place, 0) + change
    return changes


def at_rank_strength(name: str) -> Changes:
    """All of the file, as if alpha were the rank."""
    tensors, some = FILES[name], []
    for key, down in tensors.items():
        for ending, other in ((".lora_down.", ".lora_up."), (".lora_A.", ".lora_B."), (".down.", ".up.")):
            if ending in key:
                some.append((TARGETS[key.split(ending)[0]], down, tensors[key.replace(ending, other)], 1.0))
                break
    return added(some)


def verdict(name: str, path: Path, reader: Callable[[Path], Changes]) -> str:
    """In the words of the table."""
    whole = at_rank_strength(name)
    try:
        changes = reader(path)
    except CheckpointError:
        return "refuses it by name"
    except Exception as error:
        return f"raises {type(error).__name__}"
    acting = {place: change for place, change in changes.items() if change.any()}
    if not acting:
        return "nothing of it"
    (strength,) = {round(float(change.norm() / whole[place].norm()), 3) for place, change in acting.items()}
    share = "all of it" if len(acting) == len(whole) else f"{len(acting)} of {len(whole)} layers, the others dropped"
    return f"{share}, at {strength:g}"


@pytest.mark.parametrize("name", LORA_FILES)
def test_libraries_do_what_the_page_says(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = verdict(name, path, by_diffusers)
    ours = verdict(name, path, by_fluxserve) + ("; warns of the words" if "words" in caplog.text else "")
    assert Seen(theirs, ours) == LORA_FILES[name]


def test_the_page_tells_of_every_file() -> None:
    assert FILES.keys() == LORA_FILES.keys()

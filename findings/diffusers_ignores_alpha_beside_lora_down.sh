#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
#
# A FLUX LoRA may hold transformer.MODULE.lora_down.weight, .lora_up.weight and .alpha: one expects strength alpha / rank, as
# in the same file under sd-scripts' names.
# Seen: the matrices are taken and every alpha is dropped without a word, so that a file of rank 4 and alpha 2 acts at 1
# instead of 0.5. Multiply lora_up by alpha / rank before loading.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "peft==0.21.2" "transformers==5.23.0" "accelerate==1.15.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

MODULE = "transformer.transformer_blocks.0.attn.to_q"
down, up = torch.randn(4, 3072), torch.randn(3072, 4)
save_file(
    {f"{MODULE}.lora_down.weight": down, f"{MODULE}.lora_up.weight": up, f"{MODULE}.alpha": torch.tensor(2.0)},
    "a.safetensors",
)
state, alphas, metadata = FluxPipeline.lora_state_dict(
    ".", weight_name="a.safetensors", return_alphas=True, return_lora_metadata=True
)
found = state[f"{MODULE}.lora_B.weight"] @ state[f"{MODULE}.lora_A.weight"]
strength = float(found.norm() / (up @ down).norm())
print("alphas:", alphas, "metadata:", metadata, "strength in the matrices:", round(strength, 3))
sys.exit(0 if not alphas and not metadata and abs(strength - 1) < 1e-3 else 1)
PY

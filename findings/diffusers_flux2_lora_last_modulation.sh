#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0 (CPU).
#
# FLUX.2's last layer is modulated by (shift, scale) in Black Forest Labs' files and by (scale, shift) in diffusers, which
# exchanges the halves of `final_layer.adaLN_modulation.1.weight` when it reads a single file. One expects that a LoRA in
# BFL's names for that layer is exchanged too: that reading a merged file, and reading the file and then the LoRA, agree.
# Seen: the LoRA's rows stay where they are, so its change of the shift acts on the scale, and the other way round.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "transformers==5.23.0" "peft==0.21.2"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

LAYER = "final_layer.adaLN_modulation.1"
torch.manual_seed(0)
weight, down, up = torch.randn(64, 32), torch.randn(4, 32), torch.randn(64, 4)


def read(matrix):
    return convert_flux2_transformer_checkpoint_to_diffusers({f"{LAYER}.weight": matrix.clone()})["norm_out.linear.weight"]


lora = Flux2KleinPipeline.lora_state_dict(
    {f"diffusion_model.{LAYER}.lora_A.weight": down, f"diffusion_model.{LAYER}.lora_B.weight": up}
)
change = lora["transformer.norm_out.linear.lora_B.weight"] @ lora["transformer.norm_out.linear.lora_A.weight"]
merged_first, lora_after = read(weight + up @ down), read(weight) + change
exchanged = read(weight) + torch.cat(change.chunk(2)[::-1])
print("merged into the file, and applied after reading it, agree:", torch.allclose(merged_first, lora_after))
print("they agree when the halves of the LoRA are exchanged:", torch.allclose(merged_first, exchanged))
sys.exit(0 if torch.allclose(merged_first, exchanged) and not torch.allclose(merged_first, lora_after) else 1)
PY

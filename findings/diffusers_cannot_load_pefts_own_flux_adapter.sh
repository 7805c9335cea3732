#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
#
# peft.get_peft_model(transformer).save_pretrained(folder) writes adapter_model.safetensors, with names under
# base_model.model. . One expects FluxPipeline.load_lora_weights, which is built on peft, to load it.
# Seen: lora_state_dict raises KeyError on the first name. PeftModel.from_pretrained(transformer, folder) loads it; or rename
# base_model.model. to transformer. and give lora_alpha in the metadata.
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
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, get_peft_model

model = FluxTransformer2DModel(
    num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
    pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), in_channels=16,
)
adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k"]))
adapted.save_pretrained("adapter")
try:
    FluxPipeline.lora_state_dict("adapter", weight_name="adapter_model.safetensors")
except KeyError as error:
    print("KeyError:", error)
    sys.exit(0)
except Exception as error:
    print("another error:", type(error).__name__, error)
sys.exit(1)
PY

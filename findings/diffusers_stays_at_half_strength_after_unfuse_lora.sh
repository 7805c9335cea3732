#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
#
# fuse_lora(lora_scale=0.5) followed by unfuse_lora() is expected to leave the pipeline as before: base weights as they were,
# the adapter beside them at strength 1.
# Seen: the base weights come back, but the adapter goes on acting at 0.5, since fusing scales the adapter's layers in place
# and unfusing does not undo it. Doing it again leaves 0.25. Call set_adapters(name, 1.0) after unfuse_lora().
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
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

torch.manual_seed(0)
model = FluxTransformer2DModel(
    num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
    pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), in_channels=16,
)
model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False))
layer = next(m for name, m in model.named_modules() if name.endswith("transformer_blocks.0.attn.to_q"))
weight = layer.base_layer.weight.clone()
strengths = [layer.scaling["default"]]
for _ in range(2):
    model.fuse_lora(lora_scale=0.5)
    model.unfuse_lora()
    strengths.append(layer.scaling["default"])
print("base weight restored:", torch.allclose(layer.base_layer.weight, weight, atol=1e-6))
print("strength before, after one and after two rounds:", strengths)
sys.exit(0 if strengths == [1.0, 0.5, 0.25] else 1)
PY

#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0 (CPU), numpy 2.4.6.
#
# BFL's control LoRAs (FLUX.1 Canny, Depth) change `final_layer.adaLN_modulation.1`, whose rows BFL has as (shift, scale)
# and diffusers as (scale, shift). One expects of the conversion that the product lora_B @ lora_A has its rows' halves
# exchanged: so those of lora_B.
# Seen: the halves of lora_A are exchanged too, whose rows are ranks. The product is that of other pairs of ranks, so the
# converted LoRA changes the last modulation by something else than BFL's own code does. To use such a LoRA as it was
# trained, put lora_A of `norm_out.linear` back to what the file holds.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "transformers==5.23.0" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers as convert

RANK, WIDTH = 4, 6
linears = ["time_in.in_layer", "time_in.out_layer", "vector_in.in_layer", "vector_in.out_layer"]
linears += ["guidance_in.in_layer", "guidance_in.out_layer", "txt_in", "img_in"]
linears += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
norms = []
for i in range(19):
    for stream in ("img", "txt"):
        linears += [f"double_blocks.{i}.{stream}_{name}" for name in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")]
        norms += [f"double_blocks.{i}.{stream}_attn.norm.{name}_norm.scale" for name in ("query", "key")]
for i in range(38):
    linears += [f"single_blocks.{i}.{name}" for name in ("modulation.lin", "linear1", "linear2")]
    norms += [f"single_blocks.{i}.norm.{name}_norm.scale" for name in ("query", "key")]
torch.manual_seed(0)
lora = {name: torch.ones(2) for name in norms}
for name in linears:
    rows = 3 * 3072 + 12288 if name.endswith("linear1") else WIDTH
    lora |= {f"{name}.lora_A.weight": torch.randn(RANK, WIDTH), f"{name}.lora_B.weight": torch.randn(rows, RANK)}
last = "final_layer.adaLN_modulation.1"
down, up = (lora[f"{last}.lora_{half}.weight"].clone() for half in "AB")
made = convert(dict(lora))
their_down, their_up = (made[f"transformer.norm_out.linear.lora_{half}.weight"] for half in "AB")
expected = torch.cat((up @ down).chunk(2)[::-1])
off = float((their_up @ their_down - expected).abs().max())
print("largest difference from the product with its halves exchanged:", off)
print("with lora_A as the file holds it:", float((their_up @ down - expected).abs().max()))
print("lora_A has its halves exchanged:", torch.equal(their_down, torch.cat(down.chunk(2)[::-1])))
sys.exit(0 if off > 0.1 and torch.allclose(their_up @ down, expected, atol=1e-5) else 1)
PY

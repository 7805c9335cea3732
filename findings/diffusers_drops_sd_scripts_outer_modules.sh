#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
#
# sd-scripts trains FLUX.1's embedders and final layer too (lora_unet_img_in, lora_unet_final_layer_linear, ...), and T5 as
# lora_te3_. One expects FluxPipeline.load_lora_weights, which reads sd-scripts' files, to take these or to warn.
# Seen: the blocks' modules act, the five outer ones and T5's do not. lora_state_dict converts the outer ones, but to names
# without "transformer." in front, and load_lora_weights keeps only names with it. Nothing is said of them: the one line of log
# is about text_encoder and says that it is safe to ignore. Put "transformer." before the names that lora_state_dict returns,
# and load that.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "peft==0.21.2" "transformers==5.23.0" "accelerate==1.15.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io
import logging
import sys
import warnings

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

BLOCKS = {"double_blocks_0_img_attn_qkv": (9216, 3072), "double_blocks_0_txt_mlp_0": (12288, 3072)}
BLOCKS["single_blocks_0_linear2"] = (3072, 15360)
OUTER = {"img_in": (3072, 64), "txt_in": (3072, 4096), "time_in_in_layer": (3072, 256)}
OUTER |= {"final_layer_linear": (64, 3072), "final_layer_adaLN_modulation_1": (6144, 3072)}
modules = {f"lora_unet_{name}": shape for name, shape in (BLOCKS | OUTER).items()}
modules["lora_te3_encoder_block_0_layer_0_SelfAttention_q"] = (4096, 4096)
tensors = {}
for module, (rows, columns) in modules.items():
    tensors[f"{module}.lora_down.weight"] = torch.randn(4, columns)
    tensors[f"{module}.lora_up.weight"] = torch.randn(rows, 4)
    tensors[f"{module}.alpha"] = torch.tensor(4.0)
save_file(tensors, "a.safetensors")
with torch.device("meta"):  # the adapter's matrices are real all the same
    transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
pipeline = FluxPipeline(None, None, None, None, None, None, transformer)
said = io.StringIO()
logging.getLogger("diffusers").addHandler(logging.StreamHandler(said))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pipeline.load_lora_weights(".", weight_name="a.safetensors", low_cpu_mem_usage=True)
adapted = sorted({n.split(".lora_A")[0] for n, _ in transformer.named_parameters() if ".lora_A" in n})
outer = [name for name in adapted if "_blocks." not in name]
lines = [str(w.message) for w in caught] + said.getvalue().splitlines()
about = [line for line in lines if "text_encoder" not in line]
print("modules that act:", adapted)
print("outer modules that act:", outer)
print("said of them:", about)
sys.exit(0 if adapted and not outer and not about else 1)
PY

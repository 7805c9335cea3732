#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU).
#
# FluxPipeline.load_lora_weights is given a LoKr file in kohya's names, as lycoris writes them for FLUX.1
# (lora_unet_double_blocks_0_img_attn_qkv.lokr_w1, .lokr_w2, .alpha). One expects it to be taken (FLUX.2's and Z-Image's LoKr
# are), or refused.
# Seen: it ends well and the transformer has no adapter: the check that every key holds "lora" is met by the names' beginning,
# and then only keys that begin with "transformer." are kept. All that is said is a line of log that no LoRA keys were found,
# which is "safe to ignore". Look at pipeline.get_list_adapters() after loading.
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
from safetensors.torch import save_file

MODULE = "lora_unet_double_blocks_0_img_attn_qkv"
save_file(
    {f"{MODULE}.lokr_w1": torch.ones(4, 4), f"{MODULE}.lokr_w2": torch.ones(2304, 768), f"{MODULE}.alpha": torch.tensor(1.0)},
    "a.safetensors",
)
with torch.device("meta"):
    transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
pipeline = FluxPipeline(None, None, None, None, None, None, transformer)
try:
    pipeline.load_lora_weights(".", weight_name="a.safetensors")
except Exception as error:
    print("raises", type(error).__name__, error)
    sys.exit(1)
adapted = [name for name, _ in transformer.named_parameters() if "lokr" in name or "lora" in name]
print("adapters:", pipeline.get_list_adapters(), "matrices:", adapted)
sys.exit(0 if not adapted and not pipeline.get_list_adapters() else 1)
PY

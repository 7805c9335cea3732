#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU), gguf 0.19.0.
#
# GGUFQuantizationConfig(compute_dtype=torch.float32) asks for computing in float32: one expects a Q8_0 matrix to be unpacked as
# scale * integer in float32, as llama.cpp's and gguf's own dequantisation do.
# Seen: dequantize_gguf_tensor multiplies in float16 and only then casts to compute_dtype, so that the weights are rounded to
# float16 whatever compute_dtype is, and a product above 65504 is infinite. GGUF's scales are float16, the products are not.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "peft==0.21.2" "transformers==5.23.0" "accelerate==1.15.0" "gguf==0.19.0"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import gguf
import numpy as np
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

rows = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
packed = gguf.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
exact = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
layer = GGUFLinear(64, 64, bias=False, compute_dtype=torch.float32)
layer.weight = GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
unpacked = dequantize_gguf_tensor(layer.weight)
drawn = layer(torch.eye(64)).T
print("dtype when unpacked:", unpacked.dtype)
print("largest difference from gguf's own, compute_dtype float32:", float((drawn - exact).abs().max()))
print("equal to gguf's own rounded to float16:", torch.equal(drawn, exact.half().float()))
rounded = unpacked.dtype == torch.float16 and torch.equal(drawn, exact.half().float())
sys.exit(0 if rounded and not torch.equal(drawn, exact) else 1)
PY

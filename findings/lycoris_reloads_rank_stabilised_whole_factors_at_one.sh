#!/usr/bin/env bash
# lycoris-lora 4.1.3, torch 2.13.0 (CPU).
#
# A LoKr whose rank is too large for its factors holds both whole. With rs_lora=True it trains at rank / sqrt(rank), and its
# state dict is expected to say so: made again from it, the module should give the same answers.
# Seen: whole factors tell no rank, so make_module_from_state_dict takes rank 1 and strength 1 and the file's alpha is not read:
# of rank 16 a quarter of the trained strength is left. Low-rank factors come back right. Without rs_lora both act at 1.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "lycoris-lora==4.1.3"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from lycoris.modules.lokr import LokrModule

torch.manual_seed(0)
linear = torch.nn.Linear(64, 64, bias=False)
seen = {}
for rank in (2, 16):
    module = LokrModule("x", linear, lora_dim=rank, alpha=rank, rs_lora=True)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    state = module.custom_state_dict()
    with torch.no_grad():
        again = LokrModule.make_module_from_state_dict("x", linear, *map(state.get, LokrModule.weight_list))
        eye = torch.eye(64)
        trained, loaded = (m(eye) - linear(eye) for m in (module, again))
    seen[rank] = (sorted(k for k in state if k != "alpha"), float(state["alpha"]), round(float(loaded.norm() / trained.norm()), 3))
    print("rank", rank, "keys, alpha, loaded / trained:", *seen[rank])
sys.exit(0 if (seen[2][2], seen[16][2]) == (1.0, 0.25) else 1)
PY

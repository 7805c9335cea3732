#!/usr/bin/env bash
# lycoris-lora 4.1.3, torch 2.13.0 (CPU).
#
# A LoKr or LoHa module of rank 4 and alpha 2 acts at alpha / rank = 0.5 in forward(). One expects merge_to(), which writes the
# same change into the Linear's weight, to change its answers by as much.
# Seen: get_weight() is scaled already and get_diff_weight() scales it again, so that a merged module acts at 0.25. It shows
# wherever alpha is not the rank. Merge get_weight() yourself, or bake alpha / rank into a factor and set alpha = rank.
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
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

torch.manual_seed(0)
seen = {}
for kind in (LokrModule, LohaModule):
    linear = torch.nn.Linear(64, 192, bias=False)
    before = linear.weight.detach().clone()
    module = kind("x", linear, lora_dim=4, alpha=2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        eye = torch.eye(64)
        beside = (module(eye) - linear(eye)).T
        module.merge_to(1.0)
        merged = linear.weight - before
    seen[kind.__name__] = round(float(merged.norm() / beside.norm()), 3)
print("merged / beside, expected 1:", seen)
sys.exit(0 if set(seen.values()) == {0.5} else 1)
PY

#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 (CPU).
#
# A text encoder whose layer 3 is read needs no later layers: one expects that a Qwen3 of three layers gives the same
# hidden_states[3] as one of four layers with the same weights, since entry k is what layer k + 1 takes.
# Seen: the last entry has gone through the model's final norm, all others have not. So hidden_states[3] of the cut
# model is the normed state, with another scale; hidden_states[2] and all before are equal. To cut a model at the layer
# that is read, take the layer's own output (a forward hook), keep one more layer, or put an identity in the norm's place.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0"
"$work/venv/bin/python" - <<'PY'
import sys

import torch
from transformers import Qwen3Config, Qwen3Model

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
torch.manual_seed(0)
whole = Qwen3Model(Qwen3Config(num_hidden_layers=4, **sizes)).eval()
with torch.no_grad():
    for layer in whole.layers:  # states that have grown, as in a trained model
        layer.mlp.down_proj.weight.mul_(50)
cut = Qwen3Model(Qwen3Config(num_hidden_layers=3, **sizes)).eval()
cut.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("layers.3.")})
ids = torch.arange(10)[None]
with torch.no_grad():
    a = whole(ids, output_hidden_states=True).hidden_states
    b = cut(ids, output_hidden_states=True).hidden_states
    normed = whole.norm(a[3])
same = [torch.allclose(a[k], b[k], atol=1e-5) for k in range(4)]
print("hidden_states[k] of four and three layers equal, k = 0..3:", same)
print("largest difference at k = 3:", float((a[3] - b[3]).abs().max()))
print("the cut model's last entry is the normed state:", torch.allclose(b[3], normed, atol=1e-5))
sys.exit(0 if same == [True, True, True, False] and torch.allclose(b[3], normed, atol=1e-5) else 1)
PY

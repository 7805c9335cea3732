"""Kinds of LoRA files, and what libraries do with one of each: the rows of docs/interop_files.md.

`tests/weights/lora/test_interop.py` writes these files, runs the libraries on them and holds the answers against these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """What becomes of a file. alpha is 2 and the rank 4 in each that has an alpha: 0.5 is the right strength."""

    diffusers: str
    fluxserve: str


ALL_HALF, ALL = "all of it, at 0.5", "all of it, at 1"

LORA_FILES = {
    "sd-scripts: blocks": Seen(ALL_HALF, ALL_HALF),
    "sd-scripts: blocks, embedders and final layer": Seen("3 of 8 layers, the others dropped, at 0.5", ALL_HALF),
    "sd-scripts: blocks, and T5 as `lora_te3_`": Seen("3 of 4 layers, the others dropped, at 0.5", ALL_HALF),
    "sd-scripts' names, LoKr": Seen("nothing of it", "refuses it by name"),
    "OneTrainer: attention": Seen(ALL_HALF, ALL_HALF),
    "OneTrainer: attention, and T5 as `lora_te2_`": Seen("raises AssertionError", ALL_HALF),
    "OneTrainer: attention, and words in `bundle_emb.`": Seen(
        "raises AssertionError", "all of it, at 0.5; warns of the words"
    ),
    "BFL's names under `diffusion_model.`, `lora_A`": Seen("nothing of it", ALL),
    "XLabs": Seen(ALL, ALL),
    "diffusers: metadata": Seen(ALL_HALF, ALL_HALF),
    "diffusers: no metadata": Seen(ALL, ALL),
    "`lora_down` and `.alpha` under `transformer.`": Seen(ALL, ALL_HALF),
    "peft: `adapter_model.safetensors`, `adapter_config.json`": Seen("raises KeyError", ALL_HALF),
}

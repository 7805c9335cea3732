"""Kinds of LoRA files, and what libraries do with one of each: the rows of docs/interop_files.md.

`tests/weights/lora/test_interop.py` writes these files, runs the libraries on them and holds the answers against these;
what ComfyUI does is read in its source.
"""

from __future__ import annotations

from dataclasses import dataclass

COMFYUI_SOURCE = "`comfy/lora.py` at 17358c8, `comfy/lora_convert.py` at 02b5222, `comfy/weight_adapter/` at 179c2d3"


@dataclass(frozen=True)
class Seen:
    """What becomes of a file. alpha is 2 and the rank 4 in each that has an alpha: 0.5 is the right strength.

    comfyui: read, not run.
    """

    diffusers: str
    peft: str
    comfyui: str
    fluxserve: str


HALF, ALL = "all of it, at 0.5", "all of it, at 1"
NO_CONFIG = "raises ValueError"
NOTHING = "nothing of it"
WARNS = "nothing of it; logs each key"

LORA_FILES = {
    "sd-scripts: blocks": Seen(HALF, NO_CONFIG, HALF, HALF),
    "sd-scripts: blocks, embedders and final layer": Seen(
        "3 of 8 layers, the others dropped, at 0.5", NO_CONFIG, HALF, HALF
    ),
    "sd-scripts: blocks, and T5 as `lora_te3_`": Seen(
        "3 of 4 layers, the others dropped, at 0.5", NO_CONFIG, HALF, HALF
    ),
    "sd-scripts: blocks, and CLIP as `lora_te1_`": Seen(HALF, NO_CONFIG, HALF, HALF),
    "sd-scripts: blocks, beside peft's `adapter_config.json`": Seen(HALF, NOTHING, HALF, HALF),
    "lycoris: LoHa in sd-scripts' names": Seen(NOTHING, NO_CONFIG, HALF, HALF),
    "lycoris: LoKr in sd-scripts' names": Seen(NOTHING, NO_CONFIG, HALF, HALF),
    "lycoris: LoKr of whole factors": Seen(NOTHING, NO_CONFIG, ALL, ALL),
    "ai-toolkit: LoKr as `lycoris_`": Seen("raises ValueError", NO_CONFIG, HALF, HALF),
    "ai-toolkit: LoKr under `diffusion_model.`": Seen("raises ValueError", NO_CONFIG, HALF, HALF),
    "OneTrainer: attention": Seen(HALF, NO_CONFIG, HALF, HALF),
    "OneTrainer: attention, and T5 as `lora_te2_`": Seen("raises AssertionError", NO_CONFIG, HALF, HALF),
    "OneTrainer: attention, and words in `bundle_emb.`": Seen(
        "raises AssertionError",
        NO_CONFIG,
        "all of it, at 0.5; logs the words' keys",
        "all of it, at 0.5; warns of the words",
    ),
    "BFL's names under `diffusion_model.`, `lora_A`": Seen(NOTHING, NO_CONFIG, ALL, ALL),
    "XLabs": Seen(ALL, NO_CONFIG, "all of it, at 1, of a file with blocks 18 and 37; else nothing, and logs", ALL),
    "diffusers: metadata": Seen(HALF, NO_CONFIG, "all of it, at 1: reads no metadata", HALF),
    "diffusers: no metadata": Seen(ALL, NO_CONFIG, ALL, ALL),
    "diffusers: transformer and `text_encoder.`": Seen(ALL, NO_CONFIG, ALL, ALL),
    "`lora_down` and `.alpha` under `transformer.`": Seen(ALL, NO_CONFIG, HALF, HALF),
    "peft: LoRA": Seen("raises KeyError", HALF, WARNS, HALF),
    "peft: LoRA, `use_rslora`": Seen("raises KeyError", ALL, WARNS, ALL),
    "peft: LoRA, `alpha_pattern` for all": Seen("raises KeyError", HALF, WARNS, HALF),
    "peft: LoHa": Seen("raises KeyError", HALF, WARNS, HALF),
    "peft: LoKr": Seen("raises KeyError", HALF, WARNS, HALF),
}

BESIDES = {
    "gguf": "GGUF matrices are unpacked in float16 and then cast: `compute_dtype` float32 does not keep float16's "
    "rounding away. Here they are unpacked bit for bit as in gguf-py.",
    "fuse": "`fuse_lora(0.5)` and `unfuse_lora()` leave the adapter beside at 0.5, twice at 0.25. Here a request's "
    "LoRA acts beside, and is gone with it.",
}
"""What diffusers does besides, by the word its test in test_interop.py is named with."""

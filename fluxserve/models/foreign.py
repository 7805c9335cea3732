"""What files are that people try and fluxserve does not draw with, told from the names and shapes of their tensors."""

from __future__ import annotations

from collections.abc import Collection

from fluxserve.tensors.reader import TensorReader

FOREIGN = {
    (".qweight", ".wscales"): "quantised by nunchaku (SVDQuant); use a GGUF Q4_K_S or an NF4 file instead",
    (".encoded_exponent", ".sign_mantissa"): "compressed by DFloat11; use the bfloat16 file instead",
    (".SCB",): "quantised by bitsandbytes to LLM.int8; use an fp8, GGUF Q8_0 or NF4 file instead",
    ("distilled_guidance_layer.in_proj.bias",): "Chroma; fluxserve draws with FLUX.1 and FLUX.2 [klein]",
    ("redux_up.weight",): "FLUX.1 Redux, an adapter that fluxserve does not support; name a transformer",
    ("decoder.layers.0.weight",): "TAEF1; fluxserve decodes with FLUX.1's own autoencoder (ae.safetensors)",
    (".lora_down.weight",): "a LoRA, not a model; give it with --lora",
    (".lora_A.weight",): "a LoRA, not a model; give it with --lora",
}
"""Endings of tensor names that together give a foreign file away, and what it is."""

LONGCAT_TEXT_WIDTH = 3584


def foreign_name(reader: TensorReader) -> str | None:
    """What a file is, and what to use instead; None if nothing gives it away."""
    keys = reader.keys()
    for endings, what in FOREIGN.items():
        if all(any(key.endswith(ending) for key in keys) for ending in endings):
            return what
    for key in keys:
        if key.endswith("txt_in.weight") and reader.shape(key)[1:] == (LONGCAT_TEXT_WIDTH,):
            return "LongCat-Image; fluxserve draws with FLUX.1 and FLUX.2 [klein]"
    return None


def refused_lora(keys: Collection[str]) -> str | None:
    """What a LoRA file is that no model here takes, told by its keys; None if nothing gives it away."""
    if any("query_norm.scale" in key for key in keys) and any("lora_A" in key for key in keys):
        return "a control LoRA (Canny or Depth), which needs a control model; not supported"
    return None

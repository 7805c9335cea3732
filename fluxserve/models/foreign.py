"""What files are that people try and fluxserve does not draw with, told from the names and shapes of their tensors."""

from __future__ import annotations

from fluxserve.models import registry
from fluxserve.models.lora_keys import CONTROL, EMBEDDINGS, is_control, is_lora, parse_key, unsupported
from fluxserve.tensors.reader import TensorReader, name_some

FOREIGN = {
    (".qweight", ".wscales"): "quantised by nunchaku (SVDQuant); use a GGUF Q4_K_S or an NF4 file instead",
    (".encoded_exponent", ".sign_mantissa"): "compressed by DFloat11; use the bfloat16 file instead",
    (".SCB",): "quantised by bitsandbytes to LLM.int8; use an fp8, GGUF Q8_0 or NF4 file instead",
    ("decoder.layers.0.weight",): "TAEF1; fluxserve decodes with FLUX.1's own autoencoder (ae.safetensors)",
    ("control_all_x_embedder.2-1.weight",): "a Z-Image ControlNet, which fluxserve does not support",
}
"""Endings of tensor names that together give a foreign file away, and what it is."""

OTHER_MODELS = {
    ("distilled_guidance_layer.in_proj.bias",): "Chroma",
    ("siglip_pad_token",): "Z-Image Omni",
    ("layers.0.adaLN_modulation.1.weight", "cap_embedder.0.weight"): "Lumina Image 2",
}
"""The same of models."""

LONGCAT_TEXT_WIDTH = 3584


def foreign_name(reader: TensorReader) -> str | None:
    """What a file is, and what to use instead; None if nothing gives it away."""
    keys = reader.keys()
    if is_lora(keys):
        return _lora_name(reader)
    drawn = " and ".join(family.title for family in registry.families())
    models = {endings: f"{model}; fluxserve draws with {drawn}" for endings, model in OTHER_MODELS.items()}
    for endings, what in (FOREIGN | models).items():
        if all(any(key.endswith(ending) for key in keys) for ending in endings):
            return what
    for key in keys:
        if key.endswith("txt_in.weight") and reader.shape(key)[1:] == (LONGCAT_TEXT_WIDTH,):
            return f"LongCat-Image; fluxserve draws with {drawn}"
    return None


def _lora_name(reader: TensorReader) -> str:
    """What a LoRA is, in the words in which `--lora` refuses it if it does; its sizes only a model can tell."""
    zero, acting = unsupported(reader)
    if acting is not None:
        return f"a LoRA of a kind that is refused: {acting}"
    parsed = [parse_key(key) or (key, None) for key in reader.keys() if key not in zero]
    modules = sorted({module for module, _ in parsed if not module.startswith(EMBEDDINGS)})
    named = {family.title: [part.names_lora for part in family.parts] for family in registry.families()}
    homes = {title: [m for m in modules if not any(knows(m) for knows in known)] for title, known in named.items()}
    fewest = min(map(len, homes.values()))
    fitting = [title for title, strays in homes.items() if len(strays) == fewest]
    if fewest:
        strays = homes[fitting[0]]
        return f"a LoRA for another model, with what {' and '.join(named)} have no place for: {name_some(strays)}"
    owners = " or ".join(f"{title}'s" for title in fitting)
    kind = CONTROL if is_control(reader.keys()) else "a LoRA"
    return f"{kind} with {owners} names, not a model; give it with --lora"

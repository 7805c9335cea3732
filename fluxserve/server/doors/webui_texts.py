"""Infotext: how WebUI writes in words what a picture was made of."""

from __future__ import annotations

from collections.abc import Mapping

from fluxserve.request import GenerationRequest
from fluxserve.server.doors.webui_fields import SAMPLER, SCHEDULER


def infotext(request: GenerationRequest, seed: int, model: str) -> str:
    """Of one picture of a request."""
    loras = "".join(f" <lora:{lora.name}:{lora.scale:g}>" for lora in request.loras)
    told = {"Steps": str(request.num_inference_steps), "Sampler": SAMPLER, "Schedule type": SCHEDULER}
    told["CFG scale"] = f"{request.true_cfg_scale:g}"
    if request.guidance_scale is not None:
        told["Distilled CFG Scale"] = f"{request.guidance_scale:g}"
    told |= {"Seed": str(seed), "Size": f"{request.width}x{request.height}", "Model": model}
    if request.image is not None:
        told["Denoising strength"] = f"{request.strength:g}"
    return _text(request.prompt + loras, request.negative_prompt, told)


def infotext_of(items: Mapping[str, str]) -> str:
    """Of a file's own texts, as `pipeline/metadata.py` writes them; WebUI's stand under `parameters`."""
    if "parameters" in items or "prompt" not in items:
        return items.get("parameters", "")
    told = {"Steps": items.get("steps", ""), "Sampler": SAMPLER, "Seed": items.get("seed", "")}
    told |= {"Size": items.get("size", ""), "Model": items.get("model", "")}
    return _text(items["prompt"], items.get("negative_prompt", ""), {name: text for name, text in told.items() if text})


def _text(prompt: str, negative: str, told: Mapping[str, str]) -> str:
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {text}" for name, text in told.items())])

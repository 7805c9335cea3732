"""What every picture's file tells of how it was made."""

from __future__ import annotations

from fluxserve.pipeline.samples import Sample

AI_DISCLOSURE = "AI generated;{};flux"
"""As black-forest-labs/flux writes it, with txt2img or img2img: some laws ask for it."""


def about(sample: Sample, model: str) -> dict[str, str]:
    """Keys and values in the field's words. model: its id."""
    request = sample.request
    told = {
        "Software": AI_DISCLOSURE.format("img2img" if request.image or request.references else "txt2img"),
        "model": model,
        "prompt": request.prompt,
        "seed": str(sample.seed),
        "steps": str(request.num_inference_steps),
        "guidance": "none" if request.guidance_scale is None else str(request.guidance_scale),
        "size": f"{request.width}x{request.height}",
    }
    if request.true_cfg_scale > 1:
        told |= {"negative_prompt": request.negative_prompt, "true_cfg_scale": str(request.true_cfg_scale)}
    if request.solver != "euler":
        told["solver"] = request.solver
    if request.loras:
        told["loras"] = ", ".join(f"{lora.name}:{lora.scale:g}" for lora in request.loras)
    return told

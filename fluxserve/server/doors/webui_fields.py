"""WebUI's fields in ours: mapped, or warned of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.pictures import Pictures, choose_pictures
from fluxserve.server.doors.fields import ignored, rounded_size

SAMPLER, SCHEDULER = "Euler", "Simple"
_OURS = frozenset({"euler", "k_euler", "", "automatic", "simple", "normal", "none"})
"""Samplers and schedules that are what is done here, or leave it to the server."""
_LORA = re.compile(r"<lora:([^:<>]{1,256})(?::(-?[0-9.]{1,16}))?[^<>]{0,64}>")
_SAME = ("prompt", "negative_prompt", "steps", "seed")
_HANDLED = frozenset(
    (
        *_SAME,
        *("n_iter", "batch_size", "width", "height", "cfg_scale", "distilled_cfg_scale", "denoising_strength"),
        *("sampler_name", "sampler_index", "scheduler", "override_settings"),
        "init_images",
        *("mask", "mask_blur_x", "mask_blur_y", "inpainting_mask_invert", "inpainting_fill"),
        *("send_images", "save_images", "do_not_save_samples", "do_not_save_grid", "force_task_id"),
        *("override_settings_restore_afterwards", "include_init_images", "resize_mode", "image_cfg_scale"),
    )
)
_QUIET = {
    "subseed": -1,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "mask_blur": 4,
    "inpaint_full_res": True,
    "initial_noise_multiplier": 1,
    "s_noise": 1,
}
"""Values that ask for nothing, as clients send them unasked."""
_OF_HIRES, _OF_MASKS = ("hr_", "firstphase_"), ("mask_", "inpaint")


def translate(document: Mapping[str, Any], max_pixels: int, *, edits: bool) -> tuple[dict[str, Any], list[str]]:
    """(our fields, warnings).

    Raises:
        InvalidRequest: a field of another type than can be mapped.
    """
    fields: dict[str, Any] = {name: document[name] for name in _SAME if document.get(name) is not None}
    size, warnings = rounded_size(document.get("width"), document.get("height"), max_pixels)
    fields |= size | _guidance(document) | _loras(fields)
    fields["n"] = _count(document, "batch_size") * _count(document, "n_iter")
    if edits and document.get("denoising_strength") is not None:
        fields["strength"] = document["denoising_strength"]
    if edits and document.get("mask"):
        fields["mask_mode"] = "black" if _inverted(document) else "white"
    fields |= _overridden(document, warnings)
    fields |= {"response_format": "b64_json"}
    return fields, [*warnings, *ignored(_meaningless(document))]


def pictures_of(document: Mapping[str, Any]) -> Pictures:
    """init_images and the mask, whose white is redrawn, or inverted its black (see `translate`).

    Raises:
        InvalidRequest: as `choose_pictures` does.
    """
    images, mask = document.get("init_images"), document.get("mask")
    files = [("image", picture_of(image, "init_images")) for image in (images if isinstance(images, list) else ())]
    files += [("mask", picture_of(mask, "mask"))] if mask else []
    return choose_pictures(files, with_mask=True)


def picture_of(value: Any, param: str) -> bytes:
    """A picture as a data: URL, from one or from bare base64.

    Raises:
        InvalidRequest: it is neither; no URL is ever fetched.
    """
    if not isinstance(value, str) or not value or re.match(r"(?!data:)[A-Za-z][A-Za-z0-9+.-]*://", value):
        raise InvalidRequest(f"{param} must be base64 or a data: URL", param=param, code="invalid_image")
    return (value if value.startswith("data:") else f"data:image/png;base64,{value}").encode()


def _count(document: Mapping[str, Any], name: str) -> int:
    count = 1 if document.get(name) is None else document[name]
    if type(count) is not int:
        raise InvalidRequest(f"{name} must be an integer", param=name, code="invalid_type")
    if count < 1:
        raise InvalidRequest(f"{name} must be at least 1, got {count}", param=name)
    return count


def _inverted(document: Mapping[str, Any]) -> bool:
    """Whether what is not masked is redrawn: 0 or 1, or a boolean."""
    inverted = document.get("inpainting_mask_invert") or 0
    if not isinstance(inverted, int):
        raise InvalidRequest(
            "inpainting_mask_invert must be 0 or 1", param="inpainting_mask_invert", code="invalid_type"
        )
    return bool(inverted)


def _guidance(document: Mapping[str, Any]) -> dict[str, Any]:
    """Where distilled_cfg_scale is the embedded guidance, as in Forge, cfg_scale is the true one."""
    cfg, distilled = document.get("cfg_scale"), document.get("distilled_cfg_scale")
    if distilled is None:
        return {} if cfg is None else {"guidance_scale": cfg}
    return {"guidance_scale": distilled} | ({} if cfg is None else {"true_cfg_scale": cfg})


def _loras(fields: dict[str, Any]) -> dict[str, Any]:
    """`<lora:name:scale>` in the prompt, which is taken out of it."""
    prompt = fields.get("prompt")
    found = _LORA.findall(prompt) if isinstance(prompt, str) else []
    if not found:
        return {}
    try:
        loras = [{"name": name, "scale": float(scale or 1)} for name, scale in found]
    except ValueError:
        raise InvalidRequest("the scale of a LoRA must be a number", param="prompt", code="invalid_type") from None
    return {"prompt": _LORA.sub("", str(prompt)).strip(), "loras": loras}


def _overridden(document: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    settings = document.get("override_settings") or {}
    if not isinstance(settings, dict):
        raise InvalidRequest("override_settings must be an object", param="override_settings", code="invalid_type")
    warnings += ignored(f"override_settings.{name}" for name in settings if name != "sd_model_checkpoint")
    model = settings.get("sd_model_checkpoint")
    return {} if model is None else {"model": model}


def _meaningless(document: Mapping[str, Any]) -> list[str]:
    """Fields that ask for what is not done here."""
    named = [
        name
        for name in ("sampler_name", "sampler_index", "scheduler")
        if isinstance(document.get(name), str) and document[name].lower() not in _OURS
    ]
    hires = bool(document.get("enable_hr"))
    return named + [
        name
        for name, value in document.items()
        if name not in _HANDLED
        and value not in (None, False, "", 0, [], {})
        and _QUIET.get(name) != value
        and not (name.startswith(_OF_HIRES) and not hires)
        and not (name.startswith(_OF_MASKS) and not document.get("mask"))
    ]

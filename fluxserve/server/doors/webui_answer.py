"""The answer to txt2img and img2img: pictures in base64, the request, and `info`, which is JSON in text."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.doors.webui_fields import SAMPLER
from fluxserve.server.doors.webui_texts import infotext
from fluxserve.server.jobs.outcome import Outcome

_LONGEST = 2000
"""Characters of a text that the answer repeats: pictures are longer, prompts mostly shorter."""


def repeated(document: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer repeats of the request: its plain values."""
    return {
        name: value
        for name, value in document.items()
        if value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST)
    }


def answer(parameters: dict[str, Any], outcome: Outcome, resolved: ResolvedRequest, base_url: str) -> Response:
    """parameters: see `repeated`."""
    images = [base64.b64encode(image.data).decode() for image in outcome.result.images]
    info = json.dumps(_info(outcome, resolved))
    return JSONResponse({"images": images, "parameters": parameters, "info": info})


def _info(outcome: Outcome, resolved: ResolvedRequest) -> dict[str, Any]:
    request, seeds = resolved.request, [image.seed for image in outcome.result.images]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(seeds),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLER,
        "cfg_scale": request.true_cfg_scale,
        "steps": request.num_inference_steps,
        "batch_size": len(seeds),
        "sd_model_name": outcome.model,
        "sd_model_hash": None,
        "denoising_strength": request.strength if request.image is not None else None,
        "index_of_first_image": 0,
        "infotexts": [infotext(request, seed, outcome.model) for seed in seeds],
    }

"""The models of this family: what no file of theirs tells. Plain data, without torch.

Follows huggingface/diffusers `pipelines/flux2/pipeline_flux2.py` (`compute_empirical_mu`) and the model cards.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fluxserve.models.variant import Variant
from fluxserve.sizes import MAX_INPUT_IMAGES, References

LARGE_TOKENS = 4300
SLOPE_10, MU_10 = 8.73809524e-05, 1.89833333
SLOPE_200, MU_200 = 0.00016927, 0.45666666
"""The fitted shift, linear in image tokens, at 10 and at 200 steps."""


def empirical_mu(image_tokens: int, steps: int) -> float:
    """How far times move towards noise; above 4,300 tokens no longer by the number of steps."""
    at_200 = SLOPE_200 * image_tokens + MU_200
    if image_tokens > LARGE_TOKENS:
        return at_200
    at_10 = SLOPE_10 * image_tokens + MU_10
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


def times(steps: int, image_tokens: int) -> tuple[float, ...]:
    """The steps + 1 times from 1 to 0."""
    shift = math.exp(empirical_mu(image_tokens, steps))
    return (*(shift / (shift + 1 / (1 - i / steps) - 1) for i in range(steps)), 0.0)


REFERENCES = References(most=4, limit=MAX_INPUT_IMAGES, area=1024 * 1024)
"""Four are what the makers' own service takes (diffusers `pipelines/flux2/image_processor.py` knows no limit)."""

_NC_LICENCE = "FLUX Non-Commercial License v2.1"

_KLEIN = Variant(
    name="klein",
    aliases=("flux2-klein", "flux.2-klein", "flux.2-klein-4b"),
    schedule=times,
    max_sequence_length=512,
    steps={"low": 2, "medium": 4, "high": 4, "xhigh": 8, "max": 8},
    guidance_scale=None,
    guidance_max=100.0,
    native_area=1024 * 1024,
    resamples=False,
    default_size=(1024, 1024),
    licence="Apache-2.0",
    description="FLUX.2 [klein] 4B: text to image in 4 steps, and edits by up to four pictures.",
    repository="black-forest-labs/FLUX.2-klein-4B",
    references=REFERENCES,
)
_BASE = replace(
    _KLEIN,
    name="klein-base",
    aliases=("flux2-klein-base", "flux.2-klein-base-4b"),
    steps={"low": 20, "medium": 28, "high": 50, "xhigh": 50, "max": 50},
    true_cfg_scale=4.0,
    description="FLUX.2 [klein] base 4B: text to image with guidance, undistilled.",
    repository="black-forest-labs/FLUX.2-klein-base-4B",
)
VARIANTS = {
    variant.name: variant
    for variant in (
        _KLEIN,
        _BASE,
        replace(
            _KLEIN,
            name="klein-9b",
            aliases=("flux2-klein-9b", "flux.2-klein-9b"),
            licence=_NC_LICENCE,
            gated=True,
            description="FLUX.2 [klein] 9B: text to image in 4 steps, and edits by up to four pictures.",
            repository="black-forest-labs/FLUX.2-klein-9B",
        ),
        replace(
            _BASE,
            name="klein-base-9b",
            aliases=("flux2-klein-base-9b", "flux.2-klein-base-9b"),
            licence=_NC_LICENCE,
            gated=True,
            description="FLUX.2 [klein] base 9B: text to image with guidance, undistilled.",
            repository="black-forest-labs/FLUX.2-klein-base-9B",
        ),
    )
}

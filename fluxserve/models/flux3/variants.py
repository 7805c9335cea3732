"""The models of this family: what no file of theirs tells. Plain data, without torch.

Follows huggingface/diffusers `modular_pipelines/flux3` and the model cards.
"""

from __future__ import annotations

from dataclasses import replace

from fluxserve.models.variant import Variant
from fluxserve.sizes import References

SHIFT = 6.93
"""How far times move towards noise, whatever the size."""
MOST_TOKENS = 4000
"""diffusers takes up to 8192. Memory is planned for the longest prompt, and 4000 hold a page of text."""


def times(steps: int, _image_tokens: int) -> tuple[float, ...]:
    """The steps + 1 times from 1 to 0."""
    even = (1 - i / steps for i in range(steps + 1))
    return tuple(SHIFT * t / (1 + (SHIFT - 1) * t) for t in even)


_KLEIN = Variant(
    name="flux3-klein",
    aliases=("flux-3-image-klein", "flux.3-klein"),
    schedule=times,
    max_sequence_length=MOST_TOKENS,
    steps={"low": 8, "medium": 16, "high": 16, "xhigh": 24, "max": 24},
    guidance_scale=None,
    guidance_max=100.0,
    native_area=1024 * 1024,
    resamples=False,
    default_size=(1024, 1024),
    licence="FLUX Kommunity License v1.0",
    description="FLUX.3 image klein: text to image in 16 steps, and edits by up to ten pictures.",
    repository="black-forest-labs/flux-3-image-klein",
    gated=True,
    references=References(most=10, limit=10, area=1024 * 1024, whole_area=4 * 1024 * 1024),
)
VARIANTS = {
    variant.name: variant
    for variant in (
        _KLEIN,
        replace(
            _KLEIN,
            name="flux3-klein-base",
            aliases=("flux-3-image-klein-base", "flux.3-klein-base"),
            steps={"low": 28, "medium": 50, "high": 50, "xhigh": 50, "max": 50},
            true_cfg_scale=3.5,
            description="FLUX.3 image klein base: text to image with guidance, undistilled.",
            repository="black-forest-labs/flux-3-image-klein-base",
        ),
    )
}

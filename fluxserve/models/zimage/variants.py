"""The models of this family: what no file of theirs tells. Plain data, without torch.

Follows huggingface/diffusers `pipelines/z_image/pipeline_z_image.py` and the model cards on the Hub.
"""

from __future__ import annotations

from dataclasses import replace

from fluxserve.models.variant import Variant

SHIFT = 3.0
"""How far times move towards noise, whatever the size."""
TRUE_CFG_SCALE = 6.0
"""The model card's 5, which is added to the prompt's prediction, counted from the negative prompt's."""


def times(steps: int, _image_tokens: int) -> tuple[float, ...]:
    """The steps + 1 times from 1 to 0."""
    even = (1 - i / steps for i in range(steps + 1))
    return tuple(SHIFT * t / (1 + (SHIFT - 1) * t) for t in even)


_TURBO = Variant(
    name="zimage-turbo",
    aliases=("z-image-turbo",),
    schedule=times,
    max_sequence_length=512,
    steps={"low": 4, "medium": 8, "high": 8, "xhigh": 12, "max": 12},
    guidance_scale=None,
    guidance_max=100.0,
    native_area=1024 * 1024,
    resamples=False,
    default_size=(1024, 1024),
    licence="Apache-2.0",
    description="Z-Image-Turbo: text to image in 8 steps.",
    repository="Tongyi-MAI/Z-Image-Turbo",
)
VARIANTS = {
    variant.name: variant
    for variant in (
        _TURBO,
        replace(
            _TURBO,
            name="zimage",
            aliases=("z-image",),
            steps={"low": 28, "medium": 50, "high": 50, "xhigh": 50, "max": 50},
            true_cfg_scale=TRUE_CFG_SCALE,
            description="Z-Image: text to image with guidance, undistilled.",
            repository="Tongyi-MAI/Z-Image",
        ),
    )
}

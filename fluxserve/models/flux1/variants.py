"""The models of this family: what no file of theirs tells. Plain data, without torch.

Follows black-forest-labs/flux `src/flux/util.py` and `sampling.py`, and the model cards on the Hub. The copies are
repackaged files that public installers pin by size and SHA-256, with the two tokenizers that no weight file holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from fluxserve.models.variant import UngatedFile, Variant
from fluxserve.request import PictureUse
from fluxserve.sizes import References

PIPELINE, KONTEXT_PIPELINE = "FluxPipeline", "FluxKontextPipeline"
PIPELINES: Mapping[str, PictureUse] = {
    PIPELINE: "start",
    KONTEXT_PIPELINE: "start",
    "FluxFillPipeline": "fill",
    "FluxControlPipeline": "control",
}
"""diffusers' classes, and what the models of each make of a picture."""

BASE_TOKENS, BASE_MU = 256, 0.5
FULL_TOKENS, FULL_MU = 4096, 1.15


def linear(steps: int, _image_tokens: int) -> tuple[float, ...]:
    """The steps + 1 times from 1 to 0, evenly spaced."""
    return tuple(1.0 - i / steps for i in range(steps + 1))


def shifted(steps: int, image_tokens: int) -> tuple[float, ...]:
    """Moved towards noise, the more the larger the picture (arXiv 2403.03206, section 5.3.2)."""
    mu = BASE_MU + (image_tokens - BASE_TOKENS) * (FULL_MU - BASE_MU) / (FULL_TOKENS - BASE_TOKENS)
    return (*(math.exp(mu) / (math.exp(mu) + 1.0 / t - 1.0) for t in linear(steps, image_tokens)[:-1]), 0.0)


_CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
_CLIP_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

_SCHNELL_COPIES = (
    UngatedFile(
        "Comfy-Org/flux1-schnell",
        "flux1-schnell-fp8.safetensors",
        "flux1-schnell-fp8.safetensors",
        "ead426278b49030e9da5df862994f25ce94ab2ee4df38b556ddddb3db093bf72",
    ),
    *(UngatedFile(_CLIP_TOKENIZER, name, f"tokenizer/{name}") for name in _CLIP_TOKENIZER_FILES),
    UngatedFile("lmz/mt5-tokenizers", "t5-v1_1-xxl.tokenizer.json", "tokenizer_2/tokenizer.json"),
)
"""The transformer, the autoencoder and both text encoders are in the one large file."""

KONTEXT_SIZES = tuple(
    (width, height)
    for a, b in (
        (672, 1568),
        (688, 1504),
        (720, 1456),
        (752, 1392),
        (800, 1328),
        (832, 1248),
        (880, 1184),
        (944, 1104),
        (1024, 1024),
    )
    for width, height in dict.fromkeys(((a, b), (b, a)))
)
"""Those that Kontext was trained on (`PREFERED_KONTEXT_RESOLUTIONS`)."""

_DEV_LICENCE = "FLUX.1 [dev] Non-Commercial License"
_TOOL_STEPS = {"low": 28, "medium": 50, "high": 50, "xhigh": 50, "max": 50}

VARIANTS = {
    "schnell": Variant(
        name="schnell",
        aliases=("flux-schnell", "flux.1-schnell"),
        schedule=linear,
        max_sequence_length=256,
        steps={"low": 2, "medium": 4, "high": 4, "xhigh": 8, "max": 8},
        guidance_scale=None,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence="Apache-2.0",
        description="FLUX.1 [schnell]: text to image in 1 to 4 steps.",
        repository="black-forest-labs/FLUX.1-schnell",
        gated=True,
        ungated=_SCHNELL_COPIES,
    ),
    "dev": Variant(
        name="dev",
        aliases=("flux-dev", "flux.1-dev"),
        schedule=shifted,
        max_sequence_length=512,
        steps={"low": 20, "medium": 28, "high": 50, "xhigh": 50, "max": 50},
        guidance_scale=3.5,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence=_DEV_LICENCE,
        description="FLUX.1 [dev]: guidance-distilled text to image.",
        repository="black-forest-labs/FLUX.1-dev",
        gated=True,
    ),
    "fill": Variant(
        name="fill",
        aliases=("flux-fill", "flux.1-fill", "flux.1-fill-dev"),
        schedule=shifted,
        max_sequence_length=512,
        steps=_TOOL_STEPS,
        guidance_scale=30.0,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence=_DEV_LICENCE,
        description="FLUX.1 Fill [dev]: repaints the masked part of a picture, and extends pictures.",
        repository="black-forest-labs/FLUX.1-Fill-dev",
        gated=True,
        picture="fill",
    ),
    "canny": Variant(
        name="canny",
        aliases=("flux-canny", "flux.1-canny", "flux.1-canny-dev"),
        schedule=shifted,
        max_sequence_length=512,
        steps=_TOOL_STEPS,
        guidance_scale=30.0,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence=_DEV_LICENCE,
        description="FLUX.1 Canny [dev]: draws along the edges of a map.",
        repository="black-forest-labs/FLUX.1-Canny-dev",
        gated=True,
        picture="control",
        controls=("canny",),
    ),
    "depth": Variant(
        name="depth",
        aliases=("flux-depth", "flux.1-depth", "flux.1-depth-dev"),
        schedule=shifted,
        max_sequence_length=512,
        steps=_TOOL_STEPS,
        guidance_scale=10.0,
        guidance_max=100.0,
        native_area=1024 * 1024,
        resamples=False,
        default_size=(1024, 1024),
        licence=_DEV_LICENCE,
        description="FLUX.1 Depth [dev]: draws what lies as deep as a map tells.",
        repository="black-forest-labs/FLUX.1-Depth-dev",
        gated=True,
        picture="control",
    ),
    "demo": Variant(
        name="demo",
        aliases=(),
        schedule=linear,
        max_sequence_length=32,
        steps={"low": 4, "medium": 6, "high": 8, "xhigh": 12, "max": 16},
        guidance_scale=None,
        guidance_max=100.0,
        native_area=128 * 128,
        resamples=True,
        default_size=(256, 256),
        licence="Apache-2.0 (trained on MIT-licensed pictures, see NOTICE)",
        description="A small FLUX trained on pictures of some 1,850 emoji. It is not FLUX.1 and knows nothing else.",
    ),
}
VARIANTS["krea"] = replace(
    VARIANTS["dev"],
    name="krea",
    aliases=("flux-krea", "flux.1-krea", "flux.1-krea-dev"),
    guidance_scale=4.5,
    description="FLUX.1 Krea [dev]: guidance-distilled text to image, trained to look less made.",
    repository="black-forest-labs/FLUX.1-Krea-dev",
    gated=True,
)
VARIANTS["kontext"] = replace(
    VARIANTS["dev"],
    name="kontext",
    aliases=("flux-kontext", "flux.1-kontext", "flux.1-kontext-dev"),
    steps={"low": 20, "medium": 28, "high": 30, "xhigh": 50, "max": 50},
    guidance_scale=2.5,
    description="FLUX.1 Kontext [dev]: edits a picture as it is told to.",
    repository="black-forest-labs/FLUX.1-Kontext-dev",
    gated=True,
    references=References(most=1, limit=1, area=1024 * 1024, sizes=KONTEXT_SIZES),
)
VARIANTS["demo-untrained"] = replace(
    VARIANTS["demo"],
    name="demo-untrained",
    aliases=("demo",),
    description="Random weights of the demo's kind, made on the spot. Its pictures are noise.",
    notice="untrained-model-draws-noise",
)


def pipeline_of(variant: Variant) -> str:
    """diffusers' class that draws with it."""
    if variant.references is not None:
        return KONTEXT_PIPELINE
    return next(name for name, use in PIPELINES.items() if use == variant.picture)


def dev_variant(pipeline: str | None, name: str) -> str:
    """Which of those whose tensors are dev's. pipeline: a folder's class. name: of the folder, file or repository."""
    named = name.rpartition("/")[2].lower()
    if pipeline == KONTEXT_PIPELINE or (pipeline is None and "kontext" in named):
        return "kontext"
    return "krea" if "krea" in named else "dev"

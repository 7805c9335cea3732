"""The fake pipeline as a model with guidance, whose pictures hold the request they were drawn for."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace

from PIL import Image, PngImagePlugin

from fluxserve.config import PipelineConfig
from fluxserve.request import GeneratedImage
from fluxserve.worker.process import serve
from tests.fake_pipeline import CARD, FakePipeline, FakeSample, Pixels, describe_fake, load_fake

DEV_CARD = replace(
    CARD,
    id="black-forest-labs/FLUX.1-dev",
    variant="dev",
    steps={"low": 20, "medium": 28, "high": 50, "xhigh": 50, "max": 50},
    max_sequence_length=512,
    guidance_scale=3.5,
    guidance_max=100.0,
    notice="a fake, that draws patterns",
)


class EchoPipeline(FakePipeline):
    """Writes the request into each PNG, uploads as their SHA-256."""

    card = DEV_CARD

    def encode(self, pixels: Pixels, sample: FakeSample) -> GeneratedImage:
        image = super().encode(pixels, sample)
        if image.output_format != "png":
            return image
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("request", json.dumps(asdict(sample.request), default=_digest))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", pnginfo=chunks)
        return replace(image, data=buffer.getvalue())


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def load_echo(config: PipelineConfig, progress: Callable[[str, int, int], None], _: int | None = None) -> EchoPipeline:
    fake = load_fake(config, progress)
    return EchoPipeline(fake._folder, fake.max_batch)


if __name__ == "__main__":
    serve(load_echo, describe_fake)

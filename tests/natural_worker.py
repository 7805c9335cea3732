"""The fake pipeline with pictures of natural statistics and the real codecs: what a server adds to a model's time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from fluxserve.config import PipelineConfig
from fluxserve.pipeline import images
from fluxserve.request import GeneratedImage
from fluxserve.worker.process import serve
from tests.fake_pipeline import CancellationCallback, FakePipeline, FakeSample, Pixels, describe_fake, load_fake

SMOOTHNESS = (1.9, 1.5)
"""Amplitudes fall with frequency to this power: 1.9 as in a sky, 1.5 as in leaves; photographs lie between."""


@cache
def natural_pixels(kind: int, width: int, height: int) -> Pixels:
    """Colour noise whose spectrum falls as photographs' do, with the same grain every time."""
    generator = np.random.default_rng(kind)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    falling = np.maximum(np.hypot(rows, columns), 1 / max(width, height)) ** -SMOOTHNESS[kind % 2]
    grey = _field(generator, falling)
    channels = [0.8 * grey + 0.2 * _field(generator, falling) for _ in range(3)]
    return np.stack([(128 + 50 * channel).clip(0, 255) for channel in channels], axis=-1).astype(np.uint8)


def _field(generator: np.random.Generator, falling: np.ndarray) -> np.ndarray:
    values = np.fft.ifft2(np.fft.fft2(generator.standard_normal(falling.shape)) * falling).real
    return (values - values.mean()) / values.std()


class NaturalPipeline(FakePipeline):
    """Seeds pick one of the two pictures."""

    def decode(self, sample: FakeSample, cancellation: CancellationCallback) -> Pixels:
        return natural_pixels(sample.seed % 2, sample.request.width, sample.request.height)

    def encode(self, pixels: Pixels, sample: FakeSample) -> GeneratedImage:
        return images.encode(pixels, sample.request, sample.index, {"Software": "", "model": "", "prompt": ""})


def load_natural(
    config: PipelineConfig, progress: Callable[[str, int, int], None], _: int | None = None
) -> NaturalPipeline:
    fake = load_fake(config, progress)
    for kind in range(len(SMOOTHNESS)):
        natural_pixels(kind, 1024, 1024)
    return NaturalPipeline(None, fake.max_batch)


if __name__ == "__main__":
    serve(load_natural, describe_fake)

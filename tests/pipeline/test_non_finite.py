"""A picture that 16 bits cannot hold is decoded again in float32; one that is not finite there either is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from fluxserve.errors import NonFiniteOutput
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.request import GeneratedImage
from tests.conftest import MakeCheckpoint

Draw = Callable[[float], GeneratedImage]


@pytest.fixture(scope="module")
def draw(tiny_checkpoint: MakeCheckpoint) -> Draw:
    """draw(largest): a picture of a float16 model whose decoder's first layer has this for its largest weight."""
    pipeline = FluxPipeline.from_pretrained(str(tiny_checkpoint()), device="cpu", dtype="float16")
    weight = pipeline.pictures.autoencoder.decoder.conv_in.weight
    unit = weight.detach() / weight.detach().abs().max()

    def draw_scaled(largest: float) -> GeneratedImage:
        with torch.no_grad():
            weight.copy_(unit * largest)
        return pipeline.generate("a cat", width=64, height=64, num_inference_steps=1, seed=1)[0]

    return draw_scaled


@pytest.mark.fault(39)
def test_what_overflows_is_decoded_again(draw: Draw, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fluxserve.pipeline"):
        assert draw(0.1).data
        assert "decoding again" not in caplog.text
        assert draw(60_000.0).data
    assert "decoding again in float32" in caplog.text


@pytest.mark.fault(39)
def test_what_is_not_finite_is_refused(draw: Draw) -> None:
    with pytest.raises(NonFiniteOutput, match="not finite"):
        draw(float("nan"))

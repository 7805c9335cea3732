"""Between pixels and latents: the autoencoder with its tiles, its checkpoint and its second try. Knows no prompts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from fluxserve.errors import NonFiniteOutput
from fluxserve.models.cancellation import Checkpoint
from fluxserve.models.parts import latents as sampling
from fluxserve.models.parts.autoencoder import Autoencoder, ResnetBlock
from fluxserve.pipeline import images
from fluxserve.pipeline.images import InputPicture, Pixels
from fluxserve.pipeline.samples import Sample
from fluxserve.pipeline.tiles import decode_tiled
from fluxserve.placement.plan import Plan

log = logging.getLogger(__name__)


class Pictures:
    """Encodes input pictures and decodes samples, whole or in tiles as the plan has room."""

    def __init__(self, autoencoder: Autoencoder, plan: Plan) -> None:
        self.autoencoder = autoencoder
        self.plan = plan
        self._checkpoint = Checkpoint(
            module for module in autoencoder.decoder.modules() if isinstance(module, ResnetBlock)
        )

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.autoencoder.params.z_channels

    def encode(self, picture: InputPicture, width: int, height: int) -> Tensor:
        """Returns (I, C * 4) float32 packed latents of the picture at the drawn size."""
        weight = self.autoencoder.encoder.conv_in.weight
        pixels = images.to_tensor(images.resample(picture.pixels, width, height))
        latents = self.autoencoder.encode(pixels[None].to(weight.device, weight.dtype).contiguous())
        return sampling.pack(latents[0].float())

    @torch.inference_mode()
    def to_pixels(self, sample: Sample, packed: Tensor, checkpoint: Callable[[], None]) -> Pixels:
        """packed: (I, C * 4) float32. Returns the picture at the size asked, what an edit keeps in its place.

        Raises:
            NonFiniteOutput: it holds NaN or infinity, in float32 too.
        """
        latents = sampling.unpack(packed, *sample.latent_size)
        with self._checkpoint.calling(checkpoint):
            image = self._decode_soundly(latents)
        request = sample.request
        pixels = images.resample(images.to_uint8(image), request.width, request.height)
        return pixels if sample.picture is None else images.keep_unmasked(sample.picture, pixels)

    def _decode_soundly(self, latents: Tensor) -> Tensor:
        """latents: (C, h, w) float32. Returns (3, height, width), decoded in float32 where 16 bits overflow."""
        image = self._decode(self.autoencoder, latents)
        dtype = self.autoencoder.decoder.conv_in.weight.dtype
        if not images.is_sound(image) and dtype != torch.float32:
            log.warning("the decoded picture is not finite in %s: decoding again in float32", dtype)
            image = self._decode(copy.deepcopy(self.autoencoder).float(), latents)
        if not images.is_sound(image):
            raise NonFiniteOutput("the model produced a picture that is not finite; other seeds may do")
        return image

    def _decode(self, autoencoder: Autoencoder, latents: Tensor) -> Tensor:
        """(C, h, w) to (3, height, width), whole where memory allows."""
        _, h, w = latents.shape
        latents = latents[None].to(autoencoder.decoder.conv_in.weight.dtype)
        if self.plan.decodes_whole(w * 8, h * 8):
            return autoencoder.decode(latents)[0]
        return decode_tiled(autoencoder.decode, latents)[0]

"""Between pixels and latents: the autoencoder with its tiles, its cancellation and its second try."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from fluxserve.errors import NonFiniteOutput
from fluxserve.models.cancellation import CancellationPoint
from fluxserve.models.family import Autoencoder, CancellationCallback, LatentSpace
from fluxserve.pipeline import images
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.pipeline.images import Pixels
from fluxserve.pipeline.samples import EncodedReferences, Sample
from fluxserve.pipeline.tiles import decode_tiled, encode_tiled
from fluxserve.placement.plan import Plan
from fluxserve.request import Reference
from fluxserve.sizes import References

log = logging.getLogger(__name__)

REFERENCE_CACHE_BYTES = 64 * 2**20
"""Thirty pictures of a megapixel, on the device."""


class Pictures:
    """Encodes input pictures and decodes samples, whole or in tiles as the plan has room."""

    def __init__(self, autoencoder: Autoencoder, latents: LatentSpace, plan: Plan) -> None:
        self.autoencoder = autoencoder
        self.latents = latents
        self.plan = plan
        self._cancellation = CancellationPoint(autoencoder.stages)
        self._references = ByteBoundedCache[Tensor](REFERENCE_CACHE_BYTES, lambda tokens: tokens.nbytes)

    def encode_references(
        self, references: Sequence[Reference], rule: References, cancellation: CancellationCallback
    ) -> EncodedReferences:
        """Pictures to draw by, each encoded once as long as the cache remembers its content.

        Raises:
            InvalidRequest: Pillow cannot read one of them.
        """
        tokens, own = [], rule.of(len(references))
        for reference in references:
            width, height = reference.width, reference.height
            key = hashlib.sha256(reference.data).digest(), width, height
            encoded = self._references.get(key)
            if encoded is None:
                pixels = images.read_input(reference.data, None, width, height, own).pixels
                encoded = self.encode(images.to_tensor(pixels), cancellation)
                self._references.put(key, encoded)
            tokens.append(encoded)
        scale = self.latents.scale
        grids = tuple((reference.height // scale, reference.width // scale) for reference in references)
        return EncodedReferences(torch.cat(tokens), grids)

    def encode(self, pixels: Tensor, cancellation: CancellationCallback) -> Tensor:
        """pixels: (3, height, width) in [-1, 1]. Returns (I, F) float32 tokens, encoded whole where memory allows."""
        weight = _some_weight(self.autoencoder)
        height, width = pixels.shape[1:]
        image = pixels[None].to(weight.device, weight.dtype).contiguous()
        with self._cancellation.calling(cancellation):
            if self.plan.encodes_whole(width, height):
                latents = self.autoencoder.encode(image)
            else:
                latents = encode_tiled(self.autoencoder.encode, image, self.latents.scale)
        return self.latents.pack(latents[0].float())

    @torch.inference_mode()
    def to_pixels(self, sample: Sample, tokens: Tensor, cancellation: CancellationCallback) -> Pixels:
        """tokens: (I, F) float32. Returns the picture at the size asked, what an edit keeps in its place.

        Raises:
            NonFiniteOutput: it holds NaN or infinity, in float32 too.
        """
        latents = self.latents.unpack(tokens, sample.latent_size)
        with self._cancellation.calling(cancellation):
            image = self._decode_soundly(latents)
        request = sample.request
        pixels = images.resample(images.to_uint8(image), request.width, request.height)
        if sample.given.picture is not None:
            pixels = images.keep_unmasked(sample.given.picture, pixels)
        return images.middle(pixels, *request.answered_size)

    def _decode_soundly(self, latents: Tensor) -> Tensor:
        """latents: (C, h, w) float32. Returns (3, height, width), decoded in float32 where 16 bits overflow."""
        image = self._decode(self.autoencoder, latents)
        dtype = _some_weight(self.autoencoder).dtype
        if not images.is_sound(image) and dtype != torch.float32:
            log.warning("the decoded picture is not finite in %s: decoding again in float32", dtype)
            image = self._decode(copy.deepcopy(self.autoencoder).float(), latents)
        if not images.is_sound(image):
            raise NonFiniteOutput("the model produced a picture that is not finite; other seeds may do")
        return image

    def _decode(self, autoencoder: Autoencoder, latents: Tensor) -> Tensor:
        """(C, h, w) to (3, height, width), whole where memory allows."""
        height, width = (side * self.latents.scale for side in latents.shape[1:])
        latents = latents[None].to(_some_weight(autoencoder).dtype)
        if self.plan.decodes_whole(width, height):
            return autoencoder.decode(latents)[0]
        return decode_tiled(autoencoder.decode, latents, self.latents.scale)[0]


def _some_weight(autoencoder: Autoencoder) -> Tensor:
    """All of it lies on one device in one dtype."""
    return next(iter(autoencoder.parameters()))

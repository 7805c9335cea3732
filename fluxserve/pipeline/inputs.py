"""What a model takes of a request's picture, which is made a map first where one is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fluxserve.errors import InvalidRequest
from fluxserve.models.family import SeenPicture
from fluxserve.pipeline.images import InputPicture, Pixels, read_input, resample, to_tensor
from fluxserve.request import GenerationRequest
from fluxserve.sizes import References

CANNY_THRESHOLDS = 50, 200
"""Those of the maps that the models learnt from: black-forest-labs/flux `src/flux/modules/image_embedders.py`."""


@dataclass(frozen=True)
class GivenPicture:
    """A request's picture, None without one, and what the model takes of it.

    clean: (I, F) float32 tokens, where noise is added to it. channels: see `Model.channels`.
    """

    picture: InputPicture | None
    clean: Tensor | None
    channels: Tensor | None


def input_picture(request: GenerationRequest, rule: References | None) -> InputPicture | None:
    """The uploads of an edit, at its size; the picture is a map where one is asked for. rule: see `ModelCard`.

    Raises:
        InvalidRequest: Pillow cannot read one of them, or nothing here makes the map.
    """
    if request.image is None:
        return None
    own = rule.of(len(request.references)) if rule else None
    picture = read_input(request.image, request.mask, request.width, request.height, own)
    return replace(picture, pixels=canny_map(picture.pixels)) if request.control == "canny" else picture


def canny_map(photo: Pixels) -> Pixels:
    """The photo's edges, white on black.

    Raises:
        InvalidRequest: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InvalidRequest(
            "control canny needs OpenCV here, which fluxserve[canny] brings along; or send the map itself as image",
            param="control",
            code="unsupported_value",
        ) from error
    return np.repeat(np.asarray(cv2.Canny(photo, *CANNY_THRESHOLDS))[:, :, None], 3, axis=2)


def seen_pictures(request: GenerationRequest, rule: References | None) -> list[SeenPicture]:
    """What the image encoder sees, each picture with its weight; none unless the request has weights.

    Raises:
        InvalidRequest: Pillow cannot read one of them.
    """
    if rule is None or not request.redux:
        return []
    seen = []
    for picture, weight in zip(request.references, request.redux, strict=True):
        pixels = read_input(picture.data, None, picture.width, picture.height, rule).pixels
        seen.append(SeenPicture(to_tensor(pixels), weight))
    return seen


def seen_by_model(picture: InputPicture | None, width: int, height: int) -> tuple[Tensor, Tensor]:
    """((3, height, width) in [-1, 1], (height, width) in 0..1, 1 = repaint), at the size drawn.

    Without a picture nothing is given and all is to be painted.
    """
    if picture is None:
        return torch.zeros(3, height, width), torch.ones(height, width)
    pixels = to_tensor(resample(picture.pixels, width, height))
    if picture.repaint is None:
        return pixels, torch.ones(height, width)
    return pixels, torch.from_numpy(picture.repaint)

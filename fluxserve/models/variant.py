"""What a model's files cannot tell: a row for each published model. Plain data, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fluxserve.errors import CheckpointError
from fluxserve.request import Control, PictureUse
from fluxserve.sizes import References

Schedule = Callable[[int, int], tuple[float, ...]]
"""(steps, image tokens) -> the steps + 1 times from 1 (noise) to 0 (image)."""


@dataclass(frozen=True)
class UngatedFile:
    """A file of a copy that needs no account. place: its name in the folder that is composed of them.

    sha256: None where nobody has pinned it; the Hub's word then counts.
    """

    repo_id: str
    filename: str
    place: str
    sha256: str | None = None


@dataclass(frozen=True)
class Variant:
    """What a model's files cannot tell.

    schedule: its denoising times. steps: default step counts by quality word. guidance_scale: the default, None where
    the model takes none. native_area: pixels the model was made for; `resamples`: it draws at that area whatever size
    is asked. true_cfg_scale: the default strength against the negative prompt; 1: none is read. repository: the Hub id
    it is published under, `gated` by terms to accept. ungated: copies of a gated one, the weights first. notice: a
    warning that goes out with every answer. picture, controls, references: see `ModelCard`.
    """

    name: str
    aliases: tuple[str, ...]
    schedule: Schedule
    max_sequence_length: int
    steps: Mapping[str, int]
    guidance_scale: float | None
    guidance_max: float
    native_area: int
    resamples: bool
    default_size: tuple[int, int]
    licence: str
    description: str
    true_cfg_scale: float = 1.0
    repository: str | None = None
    gated: bool = False
    ungated: tuple[UngatedFile, ...] = ()
    notice: str | None = None
    picture: PictureUse = "start"
    controls: tuple[Control, ...] = ()
    references: References | None = None


def named_variant(variants: Mapping[str, Variant], name: str, source: str) -> Variant:
    """The row that a model's files name; CheckpointError if there is none. source: of the model, for messages."""
    if name not in variants:
        raise CheckpointError(f"{source}: is of variant {name!r}; fluxserve knows {', '.join(variants)}")
    return variants[name]

"""One picture under way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fluxserve.models import solvers
from fluxserve.models.family import LatentSpace
from fluxserve.models.step_cache import BlockCache
from fluxserve.pipeline.conditioning import Conditioning
from fluxserve.pipeline.images import InputPicture
from fluxserve.pipeline.inputs import GivenPicture
from fluxserve.pipeline.loras import NO_LORAS, LoraSet
from fluxserve.request import GenerationRequest, Timings

STEPS_NEVER_SKIPPED = 8
"""A sample of so few steps runs every block at each."""


@dataclass(frozen=True)
class Inpaint:
    """What an edit keeps. clean, noise: (I, F) float32 tokens. repaint: (I, F) in 0..1, 1 = repaint."""

    clean: Tensor
    noise: Tensor
    repaint: Tensor

    def blend(self, latents: Tensor, t: float) -> Tensor:
        """Puts the input, noised to time t, back where nothing is to be repainted."""
        return self.repaint * latents + (1 - self.repaint) * solvers.add_noise(self.clean, self.noise, t)


@dataclass(frozen=True)
class EncodedReferences:
    """Pictures that samples are drawn by, in order. tokens: (R, F) float32, on the device. grids: the latent sizes."""

    tokens: Tensor
    grids: tuple[tuple[int, int], ...]


@dataclass
class StepMemory:
    """What steps leave for those after them.

    clean: (I, F) latents of the picture as predicted at the last step, None before the first. cond, uncond: the blocks'
    changes under either prompt; None: every block runs at every step.
    """

    clean: Tensor | None = None
    cond: BlockCache | None = None
    uncond: BlockCache | None = None

    @classmethod
    def of(cls, threshold: float | None, steps: int) -> StepMemory:
        """threshold: None to run all blocks, as a sample of few steps does: they differ too much."""
        if threshold is None or steps <= STEPS_NEVER_SKIPPED:
            return cls()
        return cls(None, BlockCache(threshold), BlockCache(threshold))

    def take(self, clean: Tensor) -> None:
        """What a whole step has found."""
        self.clean = clean
        for cache in (self.cond, self.uncond):
            if cache is not None:
                cache.keep()


@dataclass
class Sample:
    """Image `index` of a request at time times[step].

    native_size: (width, height) in pixels that the model draws; latent_size: (h, w). latents: (I, F) float32 tokens, on
    the device. uncond: of the negative prompt, with true CFG. given, inpaint: of an edit. loras: what acts beside the
    denoiser. references: None without any.
    """

    request: GenerationRequest
    index: int
    times: tuple[float, ...]
    native_size: tuple[int, int]
    latent_size: tuple[int, int]
    latents: Tensor
    cond: Conditioning
    uncond: Conditioning | None
    given: GivenPicture
    inpaint: Inpaint | None
    step: int = 0
    memory: StepMemory = field(default_factory=StepMemory)
    loras: LoraSet = NO_LORAS
    references: EncodedReferences | None = None

    @property
    def seed(self) -> int:
        return self.request.seeds[self.index]

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @property
    def done(self) -> bool:
        return self.step == self.steps

    @property
    def batch_key(self) -> Hashable:
        """Samples of equal keys may be stepped together."""
        uncond = None if self.uncond is None else self.uncond.text.states.shape
        return (self.grids, self.cond.text.states.shape, uncond, self.loras.choices)

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Latent sizes: of what is drawn, then of the references."""
        return (self.latent_size, *(self.references.grids if self.references else ()))

    def timings(self, spent_ms: Mapping[str, float]) -> Timings:
        """Of the whole request. spent_ms: wall time by Timings field; what is missing was not spent."""
        width, height = self.native_size
        resampled = (width, height) != (self.request.width, self.request.height)
        return Timings(
            **spent_ms,
            total_ms=sum(spent_ms.values()),
            steps=self.steps,
            skipped_steps=self.memory.cond.skipped if self.memory.cond else 0,
            prompt_cached=self.cond.cached,
            native_size=f"{width}x{height}" if resampled else None,
        )

    @property
    def second_order_weight(self) -> float:
        """How much the change of what is predicted counts in the next step; 0: Euler's step."""
        if self.request.solver == "euler" or self.memory.clean is None:
            return 0.0
        return solvers.second_order_weight(*self.times[self.step - 1 : self.step + 2])

    def advance(self, latents: Tensor, clean: Tensor) -> None:
        """Takes the result of one whole step."""
        t_next = self.times[self.step + 1]
        self.latents = latents if self.inpaint is None else self.inpaint.blend(latents, t_next)
        self.memory.take(clean)
        self.step += 1

    def predicted(self) -> Tensor:
        """The picture's latents as predicted at the last step: x0, (I, F) float32."""
        clean = self.memory.clean
        if clean is None or self.done:
            return self.latents
        return clean if self.inpaint is None else self.inpaint.blend(clean, 0.0)


def latent_weights(picture: InputPicture, latents: LatentSpace, size: tuple[int, int]) -> Tensor | None:
    """The repaint weights pooled to the latent size (h, w), as tokens: (I, F), or None without a mask."""
    if picture.repaint is None:
        return None
    weights = torch.from_numpy(picture.repaint)[None]
    pooled = torch.nn.functional.adaptive_avg_pool2d(weights, size)
    return latents.pack(pooled.expand(latents.channels, -1, -1))  # of (C, h, w)

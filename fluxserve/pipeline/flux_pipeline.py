"""The pipeline's verbs: begin, step, preview, decode; and generate, the loop over them.

Follows black-forest-labs/flux `src/flux/cli.py` for what is computed, diffusers' FluxPipeline for what a seed draws:
the same checkpoint, seed, size and steps give the same picture. Knows nothing of HTTP, queues or where weights live.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Unpack

import torch
from torch import Tensor

from fluxserve.completion import RequestOptions, complete_request
from fluxserve.config import Dtype, Offload, PipelineConfig, Storage
from fluxserve.errors import NonFiniteOutput
from fluxserve.flux import sampling
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.params import Variant
from fluxserve.flux.transformer import FluxTransformer
from fluxserve.input_images import ImageSource, read_inputs
from fluxserve.pipeline import images
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.pipeline.checkpoint import no_checkpoint
from fluxserve.pipeline.conditioning import Conditioner
from fluxserve.pipeline.generation import Generation, Stopwatch
from fluxserve.pipeline.images import InputPicture, Pixels
from fluxserve.pipeline.loras import LoraShelf
from fluxserve.pipeline.metadata import about
from fluxserve.pipeline.pictures import Pictures
from fluxserve.pipeline.samples import Inpaint, Sample, latent_weights
from fluxserve.pipeline.text_encoders import TextEncoders
from fluxserve.placement.device import largest_batch
from fluxserve.placement.plan import Plan
from fluxserve.request import GeneratedImage, GenerationRequest, ModelCard, Progress

log = logging.getLogger(__name__)

ROPE_CACHE_BYTES = 64 * 2**20
FINITE_CHECK_STEPS = 4


def log_progress(stage: str, done: int, total: int) -> None:
    """Loading progress for callers without a display: a line when a stage is complete."""
    if done >= total:
        log.info("%s: %d bytes", stage, total)


@dataclass(frozen=True)
class Networks:
    """A model's networks, placed by a plan, and the LoRAs that may run beside them."""

    encoders: TextEncoders
    transformer: FluxTransformer
    autoencoder: Autoencoder
    plan: Plan
    loras: LoraShelf


class Builder(Protocol):
    """Who can place the model again; a Blueprint."""

    def smaller_plan(self, plan: Plan) -> Plan: ...
    def build(self, plan: Plan, progress: Callable[[str, int, int], None]) -> Networks: ...


class FluxPipeline:
    """A loaded model. One thread at a time; `encode` alone may run beside the others."""

    def __init__(self, networks: Networks, variant: Variant, card: ModelCard, builder: Builder) -> None:
        self.variant = variant
        self.card = card
        self._builder = builder
        self._ropes = ByteBoundedCache[Tensor](ROPE_CACHE_BYTES, lambda rope: rope.nbytes)
        self._take(networks)
        self.max_batch = largest_batch(self.device)

    def _take(self, networks: Networks) -> None:
        self.transformer = networks.transformer
        self.pictures = Pictures(networks.autoencoder, networks.plan)
        self.loras = networks.loras
        self.conditioner = Conditioner(networks.encoders, networks.transformer)

    @property
    def device(self) -> torch.device:
        return self.transformer.img_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.img_in.bias.dtype  # a packed weight has none to compute in

    @property
    def plan(self) -> Plan:
        return self.pictures.plan

    @classmethod
    def from_pretrained(
        cls,
        model: str = PipelineConfig.model,
        *,
        device: str = PipelineConfig.device,
        dtype: Dtype = PipelineConfig.dtype,
        offload: Offload = PipelineConfig.offload,
        text_encoders: str | None = None,
        memory_budget: int | None = None,
        storage: Storage = PipelineConfig.storage,
        compile: bool = PipelineConfig.compile,
        loras: Sequence[str] = PipelineConfig.lora,
    ) -> FluxPipeline:
        """Loads a model: `demo`, a Hub id, a diffusers folder or a BFL transformer file. Options: see `PipelineConfig`.

        loras: files that change the model from the start, each as `PATH` or `PATH:SCALE`.

        Raises:
            SourceError: a Hub repository is gated, missing or unreachable.
            CheckpointError: the files are damaged, incomplete or of a kind that is refused, or a LoRA does not fit.
            ConfigError: the model or a LoRA's file is not there, or a scale is no number.
            DeviceError: the device is not there, or too small for the model.
        """
        from fluxserve.pipeline.loading import load_pipeline

        options = (device, dtype, offload, text_encoders, memory_budget, storage, compile)
        return load_pipeline(PipelineConfig(model, *options, lora=tuple(loras)), log_progress)

    def most_together(self, sample: Sample) -> int:
        """How many samples like this one to step together: `max_batch`, or as many as fit beside the weights."""
        passes = 1 if sample.uncond is None else 2
        return min(self.max_batch, max(self.plan.samples_together(*sample.native_size) // passes, 1))

    # The verbs

    @torch.inference_mode()
    def begin(self, request: GenerationRequest, checkpoint: Callable[[], None] = no_checkpoint) -> list[Sample]:
        """Everything before the first step, one Sample an image. checkpoint: called once a T5 block.

        Raises:
            InvalidRequest: an uploaded picture cannot be read, or a LoRA is not there.
        """
        width, height = self._drawn_size(request)
        h, w = height // 8, width // 8
        times = self._times(request, image_tokens=h * w // 4)
        guidance = request.guidance_scale if self.transformer.guidance_in is not None else None
        loras = self.loras.take(request.loras)
        encode = self.conditioner.condition
        cond = encode(request.prompt, request.max_sequence_length, guidance, times[:-1], checkpoint, loras)
        uncond = None
        if request.true_cfg_scale > 1:
            negative = request.negative_prompt
            uncond = encode(negative, request.max_sequence_length, guidance, times[:-1], checkpoint, loras)
        picture = self._input_picture(request)
        clean = None if picture is None else self.pictures.encode(picture, width, height)
        samples = []
        for index in range(len(request.seeds)):
            latents, inpaint = self._start(request, index, (h, w), times[0], picture, clean)
            sample = Sample(request, index, times, (h, w), latents, cond, uncond, picture, inpaint, loras=loras)
            samples.append(sample)
        return samples

    @torch.inference_mode()
    def step(self, samples: Sequence[Sample]) -> None:
        """One Euler step for samples of one batch key, each at its own time. Nothing is assigned if any part fails.

        Raises:
            NonFiniteOutput: latents hold NaN or infinity; looked at every fourth step.
        """
        velocity = self._velocity(samples)
        latents = torch.stack([sample.latents for sample in samples])
        t, t_next = (self._tensor([sample.times[sample.step + i] for sample in samples]) for i in (0, 1))
        moved = sampling.euler_step(latents, velocity, t, t_next)
        if any((sample.step + 1) % FINITE_CHECK_STEPS == 0 for sample in samples) and not moved.isfinite().all():
            raise NonFiniteOutput("the latents are no longer finite; other seeds or sizes may do")
        for sample, x, v in zip(samples, moved, velocity, strict=True):
            sample.advance(x, v)

    def preview(self, sample: Sample, checkpoint: Callable[[], None] = no_checkpoint) -> Pixels:
        """The picture as predicted at the last step, at the size asked."""
        return self.pictures.to_pixels(sample, sample.predicted(), checkpoint)

    def decode(self, sample: Sample, checkpoint: Callable[[], None] = no_checkpoint) -> Pixels:
        """The finished picture at the size asked.

        Raises:
            NonFiniteOutput: it holds NaN or infinity, in float32 too.
        """
        return self.pictures.to_pixels(sample, sample.latents, checkpoint)

    def encode(self, pixels: Pixels, sample: Sample) -> GeneratedImage:
        """Pixels to a file in the request's format, with what made it. Thread-safe; touches no device."""
        return images.encode(pixels, sample.request, sample.index, about(sample, self.card.id))

    def replan(self, checkpoint: Callable[[], None] = no_checkpoint) -> None:
        """Places the model anew in three quarters of the memory; samples under way go on where they are.

        checkpoint: called once a tensor.

        Raises:
            DeviceError: there is no smaller plan; the present one stays.
        """
        plan = self._builder.smaller_plan(self.plan)
        log.warning("out of memory: placing the model anew within %d bytes", plan.budget_bytes)
        del self.transformer, self.pictures, self.conditioner, self.loras
        self._take(self._builder.build(plan, lambda *_: checkpoint()))

    def text_usage(self, samples: Sequence[Sample]) -> tuple[int, int | None]:
        """T5 tokens used, and how many the prompt had if it was cut."""
        text = samples[0].cond.text
        return text.tokens, text.prompt_tokens if text.prompt_tokens > text.tokens else None

    # The loop

    def generate(
        self,
        prompt: str = "",
        *,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        callback: Callable[[Progress], None] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Draws pictures; what is not given is the model's default. Takes what the HTTP API takes, by the same names.

        image: what to start from: an encoded PNG, JPEG or WebP file, its path, or a Pillow picture; without a prompt
        the result is a variation of it. mask: of the same size; its transparent pixels are redrawn. By default that is
        what is transparent in the image. callback: called after every step. options: see `RequestOptions`.

        Raises:
            InvalidRequest: a value is out of range, a picture cannot be read, or a LoRA is not there; names it.
        """
        request = complete_request(self.card, prompt, inputs=read_inputs(image, mask), **options)
        return self.run(request, callback)

    def run(self, request: GenerationRequest, callback: Callable[[Progress], None] | None = None) -> Generation:
        """All verbs of one complete request, image by image."""
        clock = Stopwatch()
        samples = self.begin(request)
        clock.lap("text_ms")
        finished = []
        for sample in samples:
            while not sample.done:
                self.step([sample])
                if callback is not None:
                    callback(Progress(sample.index, sample.step, sample.steps))
            clock.lap("denoise_ms")
            pixels = self.decode(sample)
            clock.lap("decode_ms")
            finished.append(self.encode(pixels, sample))
            clock.lap("encode_ms")
        timings = samples[0].timings(clock.spent_ms)
        log.info("%d x %dx%d in %.2f s", len(finished), request.width, request.height, timings.total_ms / 1000)
        return Generation(tuple(finished), timings)

    # Inside begin

    def _drawn_size(self, request: GenerationRequest) -> tuple[int, int]:
        """(width, height) the model draws at."""
        if not self.variant.resamples:
            return request.width, request.height
        return images.size_of_area(request.width, request.height, self.variant.native_area)

    def _times(self, request: GenerationRequest, image_tokens: int) -> tuple[float, ...]:
        """The schedule, without the first steps where an uploaded picture stands in for them."""
        steps = request.num_inference_steps
        times = sampling.schedule(steps, image_tokens, self.variant.shifted_schedule)
        skipped = 0 if request.image is None else min(math.floor(steps * (1 - request.strength)), steps - 1)
        return tuple(times[skipped:])

    def _input_picture(self, request: GenerationRequest) -> InputPicture | None:
        if request.image is None:
            return None
        return images.read_input(request.image, request.mask, request.width, request.height)

    def _start(
        self,
        request: GenerationRequest,
        index: int,
        size: tuple[int, int],
        t: float,
        picture: InputPicture | None,
        clean: Tensor | None,
    ) -> tuple[Tensor, Inpaint | None]:
        """The latents of image `index` at time t, and what an edit keeps."""
        channels = self.pictures.channels
        noise = sampling.pack(sampling.noise(request.seeds[index], channels, *size)).to(self.device)
        if picture is None or clean is None:
            return noise, None
        weights = latent_weights(picture, channels, size)
        inpaint = None if weights is None else Inpaint(clean, noise, weights.to(self.device))
        return sampling.add_noise(clean, noise, t), inpaint

    # Inside step

    def _velocity(self, samples: Sequence[Sample]) -> Tensor:
        """(B, I, C * 4) float32. With true CFG both prompts run in one pass over the weights."""
        guided = samples[0].uncond is not None
        rows = [(sample, sample.cond) for sample in samples]
        rows += [(sample, sample.uncond) for sample in samples if sample.uncond is not None]
        img = torch.stack([sample.latents for sample, _ in rows]).to(self.dtype)
        txt = torch.stack([cond.text.txt for _, cond in rows])
        modulation = torch.stack([cond.modulation[sample.step] for sample, cond in rows]).to(self.device)
        rope = self._rope(txt.shape[1], samples[0].latent_size)
        with samples[0].loras.beside("transformer", self.transformer):
            velocity = self.transformer(img, txt, modulation, rope).float()
        if not guided:
            return velocity
        cond, uncond = velocity.chunk(2)
        scale = self._tensor([sample.request.true_cfg_scale for sample in samples])[:, None, None]
        return uncond + scale * (cond - uncond)

    def _rope(self, text_tokens: int, latent_size: tuple[int, int]) -> Tensor:
        key = (text_tokens, latent_size)
        rope = self._ropes.get(key)
        if rope is None:
            rope = self.transformer.rope(text_tokens, *(side // sampling.PATCH for side in latent_size))
            self._ropes.put(key, rope)
        return rope

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

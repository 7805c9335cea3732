"""The pipeline's verbs: begin, step, preview, decode; and generate, the loop over them.

Follows black-forest-labs/flux `src/flux/cli.py` for what is computed, diffusers' FluxPipeline for what a seed draws:
the same checkpoint, seed, size and steps give the same picture. Knows nothing of HTTP, queues or where weights live.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch
from torch import Tensor

from fluxserve import request as words
from fluxserve.config import Dtype, Offload, PipelineConfig, Storage
from fluxserve.errors import NonFiniteOutput
from fluxserve.flux import sampling
from fluxserve.flux.autoencoder import Autoencoder, ResnetBlock
from fluxserve.flux.params import Variant
from fluxserve.flux.transformer import FluxTransformer
from fluxserve.pipeline import images
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.pipeline.checkpoint import Checkpoint, no_checkpoint
from fluxserve.pipeline.conditioning import Conditioner
from fluxserve.pipeline.images import InputPicture, Pixels
from fluxserve.pipeline.loras import LoraShelf
from fluxserve.pipeline.samples import Inpaint, Sample, latent_weights
from fluxserve.pipeline.text_encoders import TextEncoders
from fluxserve.pipeline.tiles import decode_tiled
from fluxserve.placement.plan import Plan
from fluxserve.request import GeneratedImage, GenerationRequest, ModelCard, Progress, Timings

log = logging.getLogger(__name__)

AI_DISCLOSURE = "AI generated;txt2img;flux"


ROPE_CACHE_BYTES = 64 * 2**20
FINITE_CHECK_STEPS = 4
GPU_BATCH = 4
"""Samples stepped together on a GPU; a CPU is busy with one."""


@dataclass(frozen=True)
class Generation(Sequence[GeneratedImage]):
    """The pictures of one `generate` call, in order, and where its time went."""

    images: tuple[GeneratedImage, ...]
    timings: Timings

    @overload
    def __getitem__(self, index: int) -> GeneratedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[GeneratedImage]: ...
    def __getitem__(self, index: int | slice) -> GeneratedImage | Sequence[GeneratedImage]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)


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
        self.max_batch = 1 if self.device.type == "cpu" else GPU_BATCH

    def _take(self, networks: Networks) -> None:
        self.transformer = networks.transformer
        self.autoencoder = networks.autoencoder
        self.plan = networks.plan
        self.loras = networks.loras
        self.conditioner = Conditioner(networks.encoders, networks.transformer)
        self._decode_checkpoint = Checkpoint(
            module for module in networks.autoencoder.decoder.modules() if isinstance(module, ResnetBlock)
        )

    @property
    def device(self) -> torch.device:
        return self.transformer.img_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.img_in.bias.dtype  # a packed weight has none to compute in

    @property
    def vae_dtype(self) -> torch.dtype:
        return self.autoencoder.decoder.conv_in.weight.dtype

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
    ) -> FluxPipeline:
        """Loads a model: `demo`, a Hub id, a diffusers folder or a BFL transformer file. Options: see `PipelineConfig`.

        Raises:
            SourceError: a Hub repository is gated, missing or unreachable.
            CheckpointError: the files are damaged, incomplete or of a kind that is refused.
            DeviceError: the device is not there, or too small for the model.
        """
        from fluxserve.pipeline.loading import load_pipeline

        config = PipelineConfig(model, device, dtype, offload, text_encoders, memory_budget, storage, compile)
        return load_pipeline(config, log_progress)

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
        clean = None if picture is None else self._encode_picture(picture, width, height)
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
        return self._to_pixels(sample, sample.predicted(), checkpoint)

    def decode(self, sample: Sample, checkpoint: Callable[[], None] = no_checkpoint) -> Pixels:
        """The finished picture at the size asked.

        Raises:
            NonFiniteOutput: it holds NaN or infinity, in float32 too.
        """
        return self._to_pixels(sample, sample.latents, checkpoint)

    def encode(self, pixels: Pixels, sample: Sample) -> GeneratedImage:
        """Pixels to a file in the request's format, with what made it. Thread-safe; touches no device."""
        return images.encode(pixels, sample.request, sample.index, self._about(sample))

    def replan(self, checkpoint: Callable[[], None] = no_checkpoint) -> None:
        """Places the model anew in three quarters of the memory; samples under way go on where they are.

        checkpoint: called once a tensor.

        Raises:
            DeviceError: there is no smaller plan; the present one stays.
        """
        plan = self._builder.smaller_plan(self.plan)
        log.warning("out of memory: placing the model anew within %d bytes", plan.budget_bytes)
        del self.transformer, self.autoencoder, self.conditioner, self.loras, self._decode_checkpoint
        self._take(self._builder.build(plan, lambda *_: checkpoint()))

    def text_usage(self, samples: Sequence[Sample]) -> tuple[int, int | None]:
        """T5 tokens used, and how many the prompt had if it was cut."""
        text = samples[0].cond.text
        return text.tokens, text.prompt_tokens if text.prompt_tokens > text.tokens else None

    # The loop

    def generate(
        self,
        prompt: str,
        *,
        n: int = 1,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> Generation:
        """Draws n pictures, with seeds seed, seed + 1, ...; what is not given is the model's default.

        width, height: multiples of 16. seed: 0 .. 2**63 - 1, random if None. callback: called after every step.
        """
        request = words.complete_request(
            self.card,
            prompt,
            n=n,
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
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

    def _encode_picture(self, picture: InputPicture, width: int, height: int) -> Tensor:
        """Returns (I, C * 4) float32 packed latents of the picture at the drawn size."""
        pixels = images.to_tensor(images.resample(picture.pixels, width, height))
        latents = self.autoencoder.encode(pixels[None].to(self.device, self.vae_dtype).contiguous())
        return sampling.pack(latents[0].float())

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
        channels = self.autoencoder.params.z_channels
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

    # Inside preview and decode

    @torch.inference_mode()
    def _to_pixels(self, sample: Sample, packed: Tensor, checkpoint: Callable[[], None]) -> Pixels:
        latents = sampling.unpack(packed, *sample.latent_size)
        with self._decode_checkpoint.calling(checkpoint):
            image = self._decode_soundly(latents)
        request = sample.request
        pixels = images.resample(images.to_uint8(image), request.width, request.height)
        return pixels if sample.picture is None else images.keep_unmasked(sample.picture, pixels)

    def _decode_soundly(self, latents: Tensor) -> Tensor:
        """latents: (C, h, w) float32. Returns (3, height, width), decoded in float32 where 16 bits overflow."""
        image = self._decode(self.autoencoder, latents)
        if not images.is_sound(image) and self.vae_dtype != torch.float32:
            log.warning("the decoded picture is not finite in %s: decoding again in float32", self.vae_dtype)
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

    # Inside encode

    def _about(self, sample: Sample) -> dict[str, str]:
        """What every file tells of how it was made."""
        request = sample.request
        about = {
            "Software": AI_DISCLOSURE,
            "model": self.card.id,
            "prompt": request.prompt,
            "seed": str(sample.seed),
            "steps": str(request.num_inference_steps),
            "guidance": "none" if request.guidance_scale is None else str(request.guidance_scale),
            "size": f"{request.width}x{request.height}",
        }
        if request.true_cfg_scale > 1:
            about |= {"negative_prompt": request.negative_prompt, "true_cfg_scale": str(request.true_cfg_scale)}
        if request.loras:
            about["loras"] = ", ".join(f"{lora.name}:{lora.scale:g}" for lora in request.loras)
        return about


class Stopwatch:
    """Milliseconds of wall time by stage."""

    def __init__(self) -> None:
        self.spent_ms: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Adds the time since the last lap to a stage."""
        now = time.perf_counter()
        self.spent_ms[stage] += (now - self._last) * 1000
        self._last = now

"""The pipeline's verbs: begin, step, preview, decode; and generate, the loop over them.

Follows black-forest-labs/flux `src/flux/cli.py` for what is computed, diffusers' pipelines for what a seed draws: the
same checkpoint, seed, size and steps give the same picture. Knows nothing of HTTP, queues or model families.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from fluxserve.completion import RequestOptions, complete_request
from fluxserve.config import PipelineConfig, takes_fields_of
from fluxserve.errors import InvalidRequest, NonFiniteOutput
from fluxserve.input_images import ImageSource, read_inputs
from fluxserve.models import solvers
from fluxserve.models.cancellation import never_cancelled
from fluxserve.models.family import CancellationCallback, LatentSpace, SeenPicture, StepInputs
from fluxserve.pipeline import images
from fluxserve.pipeline.cache import ByteBoundedCache
from fluxserve.pipeline.cards import dtype_name, model_card
from fluxserve.pipeline.conditioning import Conditioner, Conditioning
from fluxserve.pipeline.generation import Generation, Stopwatch
from fluxserve.pipeline.images import Pixels
from fluxserve.pipeline.inputs import GivenPicture, input_picture, seen_by_model, seen_pictures
from fluxserve.pipeline.loras import LoraSet
from fluxserve.pipeline.metadata import about
from fluxserve.pipeline.networks import Blueprint, Networks, draw_blueprint
from fluxserve.pipeline.pictures import Pictures
from fluxserve.pipeline.samples import EncodedReferences, Inpaint, Sample, StepMemory, latent_weights
from fluxserve.placement.device import available_bytes, largest_batch
from fluxserve.placement.plan import Plan
from fluxserve.placement.shared import SharedMemory
from fluxserve.request import GeneratedImage, GenerationRequest, MaskMode, ModelCard, Progress
from fluxserve.weights.hub.fetch import ByteProgress as ProgressCallback
from fluxserve.weights.verify import check_files

log = logging.getLogger(__name__)

POSITION_CACHE_BYTES = 64 * 2**20
FINITE_CHECK_STEPS = 4


def log_progress(stage: str, done: int, total: int) -> None:
    """Loading progress for callers without a display: a line when a stage is complete."""
    if done >= total:
        log.info("%s: %d bytes", stage, total)


def _card(blueprint: Blueprint, plan: Plan) -> ModelCard:
    loras = blueprint.adapters.by_name
    return model_card(blueprint.checkpoint, plan, blueprint.device, blueprint.block_format, loras, blueprint.solver)


class FluxPipeline:
    """A loaded model. One thread at a time; `encode` alone may run beside the others."""

    def __init__(self, blueprint: Blueprint, networks: Networks) -> None:
        self.blueprint = blueprint
        self.variant = blueprint.checkpoint.variant
        self.card = _card(blueprint, networks.plan)
        self.max_batch = largest_batch(blueprint.device)
        self._positions = ByteBoundedCache[Tensor](POSITION_CACHE_BYTES, lambda positions: positions.nbytes)
        self._take(networks)

    def _take(self, networks: Networks) -> None:
        self.networks = networks
        self.pictures = Pictures(networks.model.autoencoder, networks.latents, networks.plan)
        self.conditioner = Conditioner(networks.model, networks.denoiser)

    @property
    def device(self) -> torch.device:
        return self.blueprint.device

    @property
    def plan(self) -> Plan:
        return self.networks.plan

    @property
    def latents(self) -> LatentSpace:
        return self.networks.latents

    @classmethod
    def load(
        cls, config: PipelineConfig, progress: ProgressCallback, shared_memory: SharedMemory | None = None
    ) -> FluxPipeline:
        """Loads what `config` names onto its device. progress: called with (stage, bytes done, bytes in all).

        shared_memory: where workers on one CPU hold their weights together.

        Raises:
            SourceError, CheckpointError, ConfigError: see `open_checkpoint`.
            DeviceError: the device is not there, or the model does not fit the budget in any way.
        """
        blueprint = draw_blueprint(config, progress, shared_memory)
        plan = blueprint.plan(config.offload, config.memory_budget)
        checkpoint = blueprint.checkpoint
        log.info("%s on %s in %s: %s", checkpoint.id, blueprint.device, dtype_name(blueprint.dtype), blueprint.reason)
        check_files((*checkpoint.files, *blueprint.adapters.files), config.verify, progress)
        networks = blueprint.build(plan, progress)
        log.info("%s loaded: %s", checkpoint.id, checkpoint.variant.licence)
        return cls(blueprint, networks)

    @staticmethod
    def describe(config: PipelineConfig) -> tuple[ModelCard, int]:
        """The card that the model would have, and what its device has free, in bytes. Raises: as `load`."""
        blueprint = draw_blueprint(config, log_progress)
        plan = blueprint.plan(config.offload, config.memory_budget)
        return _card(blueprint, plan), available_bytes(blueprint.device)

    @classmethod
    @takes_fields_of(PipelineConfig)
    def from_pretrained(cls, config: PipelineConfig) -> FluxPipeline:
        """Loads a model. Takes the fields of `PipelineConfig`: model, and by name device, dtype, offload, loras, ...

        docs/options.md tells what each means.

        Raises:
            SourceError: a Hub repository is gated, missing or unreachable.
            CheckpointError: the files are damaged, incomplete or of a kind that is refused, or a LoRA does not fit.
            ConfigError: the model or a LoRA's file is not there, a scale is no number, or an option has no such value.
            DeviceError: the device is not there, or too small for the model.
            TypeError: there is no such option; names those there are.
        """
        config.check()
        return cls.load(config, log_progress)

    def most_together(self, sample: Sample) -> int:
        """How many samples like this one to step together: `max_batch`, or as many as fit beside the weights."""
        passes = 1 if sample.uncond is None else 2
        beside = len(sample.references.tokens) if sample.references else 0
        return min(self.max_batch, max(self.plan.samples_together(*sample.native_size, beside) // passes, 1))

    # The verbs

    @torch.inference_mode()
    def begin(self, request: GenerationRequest, cancellation: CancellationCallback = never_cancelled) -> list[Sample]:
        """Everything before the first step, one Sample an image. cancellation: called once a block of a text encoder,
        and of the autoencoder.

        Raises:
            InvalidRequest: an uploaded picture cannot be read, or a LoRA is not there.
        """
        native_size = width, height = self._drawn_size(request)
        size = (height // self.latents.scale, width // self.latents.scale)
        times = self._times(request, image_tokens=width * height // self.latents.token_area)
        loras = self.networks.loras.take(request.loras)
        cond, uncond = self._encode(request, times[:-1], cancellation, loras)
        given = self._take_picture(request, native_size, cancellation)
        references = self._references(request, cancellation)
        samples = []
        for index in range(len(request.seeds)):
            start, inpaint = self._start(request, index, size, times[0], given)
            samples.append(
                Sample(
                    request=request,
                    index=index,
                    times=times,
                    native_size=native_size,
                    latent_size=size,
                    latents=start,
                    cond=cond,
                    uncond=uncond,
                    given=given,
                    inpaint=inpaint,
                    loras=loras,
                    memory=StepMemory.of(self.blueprint.step_cache, len(times) - 1),
                    references=references,
                )
            )
        return samples

    @torch.inference_mode()
    def step(self, samples: Sequence[Sample]) -> None:
        """One solver step for samples of one batch key, each at its own time. Nothing is assigned if any part fails.

        Raises:
            NonFiniteOutput: latents hold NaN or infinity; looked at every fourth step.
        """
        velocity = self._velocity(samples)
        latents = torch.stack([sample.latents for sample in samples])
        t, t_next = (self._tensor([sample.times[sample.step + i] for sample in samples]) for i in (0, 1))
        clean = solvers.clean_estimate(latents, velocity, t)
        moved = solvers.euler_step(latents, velocity, t, t_next) + self._second_order(samples, clean)
        if any((sample.step + 1) % FINITE_CHECK_STEPS == 0 for sample in samples) and not moved.isfinite().all():
            raise NonFiniteOutput("the latents are no longer finite; other seeds or sizes may do")
        for sample, x, x0 in zip(samples, moved, clean, strict=True):
            sample.advance(x, x0)

    def preview(self, sample: Sample, cancellation: CancellationCallback = never_cancelled) -> Pixels:
        """The picture as predicted at the last step, at the size asked."""
        return self.pictures.to_pixels(sample, sample.predicted(), cancellation)

    def decode(self, sample: Sample, cancellation: CancellationCallback = never_cancelled) -> Pixels:
        """The finished picture at the size asked.

        Raises:
            NonFiniteOutput: it holds NaN or infinity, in float32 too.
        """
        return self.pictures.to_pixels(sample, sample.latents, cancellation)

    def encode(self, pixels: Pixels, sample: Sample) -> GeneratedImage:
        """Pixels to a file in the request's format, with what made it. Thread-safe; touches no device."""
        return images.encode(pixels, sample.request, sample.index, about(sample, self.card.id))

    def replan(self, cancellation: CancellationCallback = never_cancelled) -> None:
        """Places the model anew in three quarters of the memory; samples under way go on where they are.

        cancellation: called once a tensor.

        Raises:
            DeviceError: there is no smaller plan; the present one stays.
        """
        plan = self.blueprint.smaller_plan(self.plan)
        log.warning("out of memory: placing the model anew within %d bytes", plan.budget_bytes)
        del self.networks, self.pictures, self.conditioner
        self._take(self.blueprint.build(plan, lambda *_: cancellation()))

    def text_usage(self, samples: Sequence[Sample]) -> tuple[int, int | None]:
        """Text tokens used, and how many the prompt had if it was cut."""
        text = samples[0].cond.text
        return text.tokens, text.prompt_tokens if text.prompt_tokens > text.tokens else None

    # The loop

    def generate(
        self,
        prompt: str = "",
        *,
        image: ImageSource | None = None,
        images: Sequence[ImageSource] | None = None,
        mask: ImageSource | None = None,
        mask_mode: MaskMode = "alpha",
        callback: Callable[[Progress], None] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Draws pictures; what is not given is the model's default. Takes what the HTTP API takes, by the same names.

        image: what to start from: an encoded PNG, JPEG or WebP file, its path, or a Pillow picture; without a prompt
        the result is a variation of it. images: instead, several in order, for models that draw by them. mask: of the
        first image's size; its transparent pixels are redrawn, or with the mask_mode white or black those of that
        colour. By default that is what is transparent in an image that comes alone. callback: called after every step.
        options: see `RequestOptions`.

        Raises:
            InvalidRequest: a value is out of range, a picture cannot be read, or a LoRA is not there; names it.
        """
        if image is not None and images is not None:
            raise InvalidRequest("give image or images", param="images", code="conflicting_parameters")
        inputs = read_inputs(image if images is None else images, mask, mask_mode)
        request = complete_request(self.card, prompt, inputs=inputs, **options)
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
        skipped = 0 if request.image is None else min(math.floor(steps * (1 - request.strength)), steps - 1)
        return self.variant.schedule(steps, image_tokens)[skipped:]

    def _encode(
        self, request: GenerationRequest, times: tuple[float, ...], cancellation: CancellationCallback, loras: LoraSet
    ) -> tuple[Conditioning, Conditioning | None]:
        """The prompt with the pictures beside it and, with true CFG, the negative prompt alone.

        times: the steps' start times.
        """

        def condition(prompt: str, pictures: Sequence[SeenPicture] = ()) -> Conditioning:
            return self.conditioner.condition(
                prompt, request.max_sequence_length, request.guidance_scale, times, cancellation, loras, pictures
            )

        cond = condition(request.prompt, seen_pictures(request, self.card.redux))
        return cond, condition(request.negative_prompt) if request.true_cfg_scale > 1 else None

    def _take_picture(
        self, request: GenerationRequest, size: tuple[int, int], cancellation: CancellationCallback
    ) -> GivenPicture:
        """What the model takes of the request's picture. size: (width, height) that it draws."""

        def encode(pixels: Tensor) -> Tensor:
            return self.pictures.encode(pixels, cancellation)

        use, picture = self.variant.picture, input_picture(request, self.card.references)
        pixels, repaint = seen_by_model(picture, *size)
        starts = picture is not None and (use == "start" or (use == "fill" and request.strength < 1))
        return GivenPicture(
            picture,
            clean=encode(pixels) if starts else None,
            channels=None if use == "start" else self.networks.model.channels(pixels, repaint, encode),
        )

    def _references(self, request: GenerationRequest, cancellation: CancellationCallback) -> EncodedReferences | None:
        rule = self.card.references
        if rule is None or request.redux or not request.references:
            return None
        return self.pictures.encode_references(request.references, rule, cancellation)

    def _start(
        self, request: GenerationRequest, index: int, size: tuple[int, int], t: float, given: GivenPicture
    ) -> tuple[Tensor, Inpaint | None]:
        """The latents of image `index` at time t, and what an edit keeps, where the model itself keeps nothing."""
        noise = self.latents.noise(request.seeds[index], size).to(self.device)
        if given.picture is None or given.clean is None:
            return noise, None
        weights = latent_weights(given.picture, self.latents, size) if self.variant.picture == "start" else None
        inpaint = None if weights is None else Inpaint(given.clean, noise, weights.to(self.device))
        return solvers.add_noise(given.clean, noise, t), inpaint

    # Inside step

    def _velocity(self, samples: Sequence[Sample]) -> Tensor:
        """(B, I, F) float32. With true CFG both prompts run in one pass over the weights, if they are of one length."""
        rows = [(sample, sample.cond) for sample in samples]
        unguided = [(sample, sample.uncond) for sample in samples if sample.uncond is not None]
        if not unguided:
            return self._predicted(rows)
        if rows[0][1].text.states.shape == unguided[0][1].text.states.shape:
            cond, uncond = self._predicted(rows + unguided).chunk(2)
        else:
            cond, uncond = self._predicted(rows), self._predicted(unguided)
        scale = self._tensor([sample.request.true_cfg_scale for sample in samples])[:, None, None]
        return uncond + scale * (cond - uncond)

    def _predicted(self, rows: Sequence[tuple[Sample, Conditioning]]) -> Tensor:
        """(B, I, F) float32: the velocity of each sample under a prompt; the prompts are of one length."""
        samples = [sample for sample, _ in rows]
        latents = torch.stack([sample.latents for sample in samples]).to(self.blueprint.dtype)
        text = torch.stack([cond.text.states for _, cond in rows])
        caches = [sample.memory.cond if cond is sample.cond else sample.memory.uncond for sample, cond in rows]
        channels = [sample.given.channels for sample, _ in rows if sample.given.channels is not None]
        inputs = StepInputs(
            latents=latents,
            text=text,
            rows=torch.stack([cond.rows[sample.step] for sample, cond in rows]).to(self.device),
            positions=self._positions_of(text.shape[1], samples[0].grids),
            references=self._beside(rows),
            caches=caches if any(caches) else None,
            channels=torch.stack(channels).to(self.blueprint.dtype) if channels else None,
        )
        model = self.networks.model
        with samples[0].loras.beside(self.networks.denoiser, model.denoiser):
            return model.velocity(inputs).float()

    def _second_order(self, samples: Sequence[Sample], clean: Tensor) -> Tensor | float:
        """What the samples' solvers add to Euler's step. clean: (B, I, F) as predicted now."""
        weights = [sample.second_order_weight for sample in samples]
        if not any(weights):
            return 0.0
        before = [
            now if sample.memory.clean is None else sample.memory.clean
            for sample, now in zip(samples, clean, strict=True)
        ]
        return self._tensor(weights)[:, None, None] * (clean - torch.stack(before))

    def _beside(self, rows: Sequence[tuple[Sample, Conditioning]]) -> Tensor | None:
        """(B, R, F): what each row is drawn by."""
        tokens = [sample.references.tokens for sample, _ in rows if sample.references]
        return torch.stack(tokens).to(self.blueprint.dtype) if tokens else None

    def _positions_of(self, text_tokens: int, grids: tuple[tuple[int, int], ...]) -> Tensor:
        key = (text_tokens, grids)
        positions = self._positions.get(key)
        if positions is None:
            positions = self.networks.model.positions(text_tokens, grids)
            self._positions.put(key, positions)
        return positions

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

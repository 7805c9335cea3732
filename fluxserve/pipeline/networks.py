"""From files to networks: open, choose device and dtype, plan, build on the meta device, place."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fluxserve.config import Offload, PipelineConfig
from fluxserve.errors import ConfigError
from fluxserve.models.family import LatentSpace, Model, Part
from fluxserve.pipeline.loras import LoraRegistry
from fluxserve.placement.device import available_bytes, check_compute, choose_device, choose_dtype
from fluxserve.placement.flat import FlatLayout
from fluxserve.placement.place import NetworkWeights, Placer, block_keys, blocks_of, keys_by_place
from fluxserve.placement.plan import ModelBytes, Plan, Work, make_plan, resident_plan, streaming_plan
from fluxserve.placement.shared import SharedMemory, SharedWeights, origin_of
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.request import Solver
from fluxserve.tensors.eight_bit import product_bytes
from fluxserve.tensors.quantize import QuantMode
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import Checkpoint, open_checkpoint
from fluxserve.weights.hub.fetch import ByteProgress as ProgressCallback
from fluxserve.weights.lora.adapters import NO_ADAPTERS, Adapters, adapt
from fluxserve.weights.lora.apply import LoraHost, attach


@dataclass(frozen=True)
class Networks:
    """A model, placed by a plan, and the LoRAs that may run beside it. denoiser: the name of that part."""

    model: Model
    latents: LatentSpace
    denoiser: str
    plan: Plan
    loras: LoraRegistry


@dataclass(frozen=True)
class Blueprint:
    """All that is decided before any weight is read.

    reason: for the dtype. quant: how blocks are packed at load. compile: the denoiser's blocks. adapters: LoRAs that
    the checkpoint's weights do not hold. product: the 8-bit arithmetic of blocks; None: exact. solver: of requests that
    do not say. step_cache: see `BlockCache`; None: every block runs at every step. shared: what a CPU's workers hold
    together; None: there is one worker.
    """

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    reason: str
    quant: QuantMode | None
    compile: bool
    adapters: Adapters = NO_ADAPTERS
    product: QuantMode | None = None
    solver: Solver = "euler"
    step_cache: float | None = None
    shared: SharedWeights | None = None

    def format_of(self, part: Part) -> WeightFormat:
        """Of the part's blocks, or of all of it where it has none."""
        dtype = torch.float32 if self.dtype == torch.float16 and not part.float16 else self.dtype
        plain = WeightFormat(dtype, tables=part.tables)
        if part.role == "autoencoder":  # 3x3 convolutions run 1.16 times faster so on a CPU
            return replace(plain, channels_last=True)
        return replace(plain, quant=self.quant, product=self.product) if part.layout else plain

    @property
    def block_format(self) -> WeightFormat:
        """Of the denoiser's blocks."""
        return self.format_of(self.checkpoint.denoiser)

    def plan(self, offload: Offload, budget_bytes: int | None) -> Plan:
        """What lives where, for one image of the model's own size. budget_bytes: None: what the device has free.

        Raises:
            DeviceError: the budget is too small; names the smallest that works.
        """
        make = {"auto": make_plan, "none": resident_plan, "stream": streaming_plan}[offload]
        sizes = self.sizes()
        budget = budget_bytes or self._free_bytes()
        plan = make(sizes, self._work(), budget, self.device.type)
        if plan.slot_bytes and self.device.type == "cpu" and self.quant is not None:
            # What a CPU streams is not packed (`streamed_format`): its slots are as large as without `quant`.
            return replace(self, quant=None).plan(offload, budget)
        return plan

    def sizes(self) -> ModelBytes:
        """The networks by use, in bytes as they will lie in memory."""
        denoiser = self._part_bytes(self.checkpoint.denoiser)
        others = [self._part_bytes(part) for part in self.checkpoint.parts if part.role != "denoiser"]
        return ModelBytes(
            blocks=denoiser.blocks,
            small=denoiser.device + self.adapters.values * self.dtype.itemsize,
            encoder_blocks=tuple(block for other in others for block in other.blocks),
            whole=sum(other.device for other in others),
            host=denoiser.host + sum(other.host for other in others),
        )

    def _work(self) -> Work:
        """One image at the model's own size. A step cache holds three streams: two remembered, one at hand."""
        work, costs = work_of(self.checkpoint, self.dtype), self.checkpoint.architecture.arithmetic
        products = product_bytes(self.product, costs.hidden + costs.mlp_hidden) if self.product else 0
        cached = 3 * costs.hidden * self.dtype.itemsize if self.step_cache else 0
        return replace(work, extra_bytes=products + cached)

    def _part_bytes(self, part: Part) -> _PartBytes:
        reader, fmt = self.checkpoint.readers[part.name], self.format_of(part)
        if part.layout is None:
            return _PartBytes((), stored_bytes(reader, reader.keys(), fmt), 0)
        places = keys_by_place(reader, part.layout)
        blocks = tuple(stored_bytes(reader, block.values(), fmt) for block in block_keys(reader, part.layout))
        host = stored_bytes(reader, places.host, fmt.plain)
        tables = sum(stored_bytes(reader, [key], WeightFormat(reader.dtype(key))) for key in places.tables)
        return _PartBytes(blocks, stored_bytes(reader, places.device, fmt.plain), host + tables)

    def _free_bytes(self) -> int:
        """What the device has free, or shares already; of a CPU's memory half. The other half caches what streams.

        Streaming from that cache costs a CPU next to nothing, and other programs can have it when they need it.
        """
        free = available_bytes(self.device) + (self.shared.nbytes if self.shared else 0)
        return free // 2 if self.device.type == "cpu" else free

    def smaller_plan(self, plan: Plan) -> Plan:
        """A plan within three quarters of what another one takes. Raises: as `plan`."""
        return self.plan("auto", plan.peak_bytes * 3 // 4)

    def build(self, plan: Plan, progress: ProgressCallback) -> Networks:
        """Reads the weights to where the plan says."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        checkpoint = self.checkpoint
        with torch.device("meta"):
            built = checkpoint.architecture.build(checkpoint.tokenizers)
        networks = {name: network.requires_grad_(False).eval() for name, network in built.items()}
        self._place(networks, plan, progress)
        model = checkpoint.architecture.model(networks, checkpoint.tokenizers, self.dtype)
        for network in networks.values():
            assert not any(t.is_meta for t in (*network.parameters(), *network.buffers())), "not loaded"
        loras = self._attach_loras(networks, model)
        if self.compile and checkpoint.denoiser.layout:
            compile_blocks(blocks_of(model.denoiser, checkpoint.denoiser.layout))
        return Networks(model, checkpoint.architecture.latents, checkpoint.denoiser.name, plan, loras)

    def _place(self, networks: Mapping[str, nn.Module], plan: Plan, progress: ProgressCallback) -> None:
        """The denoiser before what streams through its slots, and networks without blocks first of all."""
        total = self.sizes().total - self.adapters.values * self.dtype.itemsize
        placer = Placer(plan, self.device, _placed(progress, total), self.shared)
        rank = {"autoencoder": 0, "image_encoder": 0, "denoiser": 1, "text_encoder": 2}
        for part in sorted(self.checkpoint.parts, key=lambda part: (part.layout is not None, rank[part.role])):
            network, reader, fmt = networks[part.name], self.checkpoint.readers[part.name], self.format_of(part)
            weights = NetworkWeights(part.name, reader)
            if part.layout is None:
                placer.whole(network, weights, fmt)
            elif part.role == "denoiser":
                placer.blocked(network, weights, part.layout, fmt, plan.resident)
            else:
                resident = range(len(block_keys(reader, part.layout))) if plan.text_encoder == "resident" else ()
                placer.blocked(network, weights, part.layout, fmt, resident)

    def _attach_loras(self, networks: Mapping[str, nn.Module], model: Model) -> LoraRegistry:
        parts = self.checkpoint.parts
        hosts = {
            part.name: LoraHost(networks[part.name], self.format_of(part).dtype)
            for part in parts
            if part.role in ("denoiser", "text_encoder")
        }
        for name, branches in self.adapters.beside.items():
            attach(hosts[name], branches)
        room = self.adapters.requestable_values * self.dtype.itemsize
        return LoraRegistry(self.adapters.by_name, hosts, model.text_encoders.keys(), room)


@dataclass(frozen=True)
class _PartBytes:
    """Of one network: each block, what is on the device beside them, what stays on the host."""

    blocks: tuple[int, ...]
    device: int
    host: int


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compiles each block by itself: eight to ten times quicker than the whole, nearly as fast to run.

    Gives 1.4 to 1.6 on GPUs (published), 1.02 on a CPU. The hooks that stream weights stay outside.
    """
    for block in blocks:
        block.forward = torch.compile(block.forward)


def draw_blueprint(
    config: PipelineConfig, progress: ProgressCallback, shared_memory: SharedMemory | None = None
) -> Blueprint:
    """Finds the model, the device and the dtype. shared_memory: of all workers with this configuration.

    Raises:
        SourceError, CheckpointError, ConfigError: see `open_checkpoint`.
        DeviceError: the device is not there, or does not compute as asked.
    """
    device = choose_device(config.device)
    choice = choose_dtype(config.dtype, device)
    if config.compile and config.lora_dir is not None:
        raise ConfigError("--compile and --lora-dir exclude each other: compiled blocks cannot change between requests")
    check_compute(config.compute, device)
    if config.compute != "exact" and config.storage not in ("native", config.compute):
        raise ConfigError(
            f"--compute {config.compute} holds the blocks in {config.compute}: --storage must be native or "
            f"{config.compute}, got {config.storage}"
        )
    checkpoint = open_checkpoint(config.model, config.text_encoders, progress, config.variant, config.redux)
    checkpoint, adapters = adapt(_reading(checkpoint, config.max_input_images), config.loras, config.lora_dir)
    if config.redux is not None and checkpoint.variant.picture != "start":
        raise ConfigError(f"--redux goes with models that draw from a prompt; {checkpoint.id} draws from a picture")
    quant: QuantMode | None = None if config.storage == "native" else config.storage
    product: QuantMode | None = None if config.compute == "exact" else config.compute
    return Blueprint(
        checkpoint,
        device,
        choice.dtype,
        choice.reason,
        quant,
        config.compile,
        adapters,
        product,
        config.solver,
        config.step_cache,
        _shared(shared_memory, device, (*checkpoint.files, *adapters.files), config.loras),
    )


def _shared(
    memory: SharedMemory | None, device: torch.device, files: Iterable[Path], loras: Iterable[str]
) -> SharedWeights | None:
    """A CPU's alone: what a GPU's workers compute with lies on the GPU."""
    if memory is None or device.type != "cpu":
        return None
    return SharedWeights(memory, origin_of(files, loras))


def _reading(checkpoint: Checkpoint, most: int | None) -> Checkpoint:
    """The checkpoint, taking so many pictures to draw by, as far as its model can."""
    rule = checkpoint.variant.references
    if rule is None or most is None:
        return checkpoint
    return replace(
        checkpoint, variant=replace(checkpoint.variant, references=replace(rule, most=min(most, rule.limit)))
    )


def work_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Work:
    """One image at the model's own size with its longest text, drawn by one picture of that size if it can be."""
    variant, architecture = checkpoint.variant, checkpoint.architecture
    side = math.isqrt(variant.native_area)
    return Work(
        width=side,
        height=side,
        batch=1,
        text_tokens=variant.max_sequence_length + (architecture.sight.tokens if architecture.sight else 0),
        reference_tokens=variant.native_area // architecture.latents.token_area if variant.references else 0,
        hidden=architecture.arithmetic.hidden,
        mlp_hidden=architecture.arithmetic.mlp_hidden,
        token_area=architecture.latents.token_area,
        decoder_channels=architecture.arithmetic.decoder_channels,
        itemsize=dtype.itemsize,
    )


def stored_bytes(reader: TensorReader, keys: Iterable[str], fmt: WeightFormat) -> int:
    """What tensors take in memory, laid out in a format."""
    return FlatLayout.of((key, fmt.meta(reader, key)) for key in keys).nbytes


def _placed(progress: ProgressCallback, total_bytes: int) -> Callable[[int], None]:
    """Adds up what has been placed."""
    done_bytes = 0

    def placed(nbytes: int) -> None:
        nonlocal done_bytes
        done_bytes += nbytes
        progress("loading", done_bytes, total_bytes)

    return placed

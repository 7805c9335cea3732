"""From files to a pipeline: open, choose device and dtype, plan, build on the meta device, place. Knows no requests."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from fluxserve.config import Offload, PipelineConfig
from fluxserve.errors import ConfigError
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.transformer import FluxTransformer
from fluxserve.pipeline.cards import dtype_name, model_card
from fluxserve.pipeline.flux_pipeline import FluxPipeline, Networks
from fluxserve.pipeline.loras import LoraShelf
from fluxserve.pipeline.text_configs import clip_config, t5_config
from fluxserve.pipeline.text_encoders import TextEncoders, load_t5_tokenizer
from fluxserve.placement.device import available_bytes, choose_device, choose_dtype
from fluxserve.placement.flat import FlatLayout
from fluxserve.placement.place import BLOCK_PREFIXES, Placer, block_keys, is_modulation, t5_block_keys
from fluxserve.placement.plan import ModelBytes, Plan, Work, make_plan, resident_plan, streaming_plan
from fluxserve.placement.storage import Form
from fluxserve.weights.adapters import NO_ADAPTERS, Adapters, adapt
from fluxserve.weights.checkpoint import Checkpoint, open_checkpoint
from fluxserve.weights.hub import ByteProgress as ProgressCallback
from fluxserve.weights.lora_apply import Home, attach
from fluxserve.weights.lora_names import NetworkName
from fluxserve.weights.quantize import Storage
from fluxserve.weights.reader import TensorReader
from fluxserve.weights.verify import check_files

log = logging.getLogger(__name__)


def load_pipeline(config: PipelineConfig, progress: ProgressCallback) -> FluxPipeline:
    """Loads what `config` names onto its device. progress: called with (stage, bytes done, bytes in all).

    Raises:
        SourceError, CheckpointError, ConfigError: see `open_checkpoint`.
        DeviceError: the device is not there, or the model does not fit the budget in any way.
    """
    blueprint = draw_blueprint(config, progress)
    plan = blueprint.plan(config.offload, config.memory_budget)
    checkpoint = blueprint.checkpoint
    log.info("%s on %s in %s: %s", checkpoint.id, blueprint.device, dtype_name(blueprint.dtype), blueprint.reason)
    check_files((*checkpoint.files, *blueprint.adapters.files), config.verify, progress)
    networks = blueprint.build(plan, progress)
    log.info("%s loaded: %s", checkpoint.id, checkpoint.variant.licence)
    card = model_card(checkpoint, plan, blueprint.device, blueprint.form, blueprint.adapters.shelf)
    return FluxPipeline(networks, checkpoint.variant, card, blueprint)


@dataclass(frozen=True)
class Blueprint:
    """All that is decided before any weight is read.

    reason: for the dtype. storage: see `PipelineConfig`. compile: the transformer's blocks. adapters: LoRAs that the
    checkpoint's weights do not hold.
    """

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    reason: str
    storage: Storage | None
    compile: bool
    adapters: Adapters = NO_ADAPTERS

    @property
    def form(self) -> Form:
        """Of the transformer's blocks; T5's are alike but for their dtype."""
        return Form(self.dtype, self.storage)

    @property
    def text_form(self) -> Form:
        """T5 overflows in float16."""
        return Form(torch.float32 if self.dtype == torch.float16 else self.dtype, self.storage)

    def plan(self, offload: Offload, budget_bytes: int | None) -> Plan:
        """What lives where, for one image of the model's own size. budget_bytes: None: what the device has free.

        Raises:
            DeviceError: the budget is too small; names the smallest that works.
        """
        make = {"auto": make_plan, "none": resident_plan, "stream": streaming_plan}[offload]
        sizes = self.sizes()
        budget = budget_bytes or self._free_bytes()
        plan = make(sizes, work_of(self.checkpoint, self.dtype), budget, self.device.type)
        if plan.slot_bytes and self.device.type == "cpu" and self.storage is not None:
            # What a CPU streams is not packed (`streamed_form`): its slots are as large as without `storage`.
            return replace(self, storage=None).plan(offload, budget)
        return plan

    def sizes(self) -> ModelBytes:
        """The four networks by use, in bytes as they will lie in memory."""
        transformer, t5, plain = self.checkpoint.transformer, self.checkpoint.t5, Form(self.dtype)
        blocks, t5_blocks = block_keys(transformer), t5_block_keys(t5)
        modulation = [key for key in transformer.keys() if is_modulation(key)]
        small = [key for key in transformer.keys() if not key.startswith(BLOCK_PREFIXES) and not is_modulation(key)]
        clip, autoencoder = self.checkpoint.clip, self.checkpoint.autoencoder
        return ModelBytes(
            blocks=tuple(stored_bytes(transformer, block.values(), self.form) for block in blocks),
            modulation=stored_bytes(transformer, modulation, plain),
            small=stored_bytes(transformer, small, plain) + self.adapters.values * self.dtype.itemsize,
            t5_blocks=tuple(stored_bytes(t5, block.values(), self.text_form) for block in t5_blocks),
            t5_embedding=stored_bytes(t5, ["shared.weight"], Form(t5.dtype("shared.weight"))),
            clip=stored_bytes(clip, clip.keys(), Form(self.text_form.dtype)),
            autoencoder=stored_bytes(autoencoder, autoencoder.keys(), plain),
        )

    def _free_bytes(self) -> int:
        """What the device has free; of a CPU's memory half. The other half caches the file that the rest streams from.

        Streaming from that cache costs a CPU next to nothing, and other programs can have it when they need it.
        """
        free = available_bytes(self.device)
        return free // 2 if self.device.type == "cpu" else free

    def smaller_plan(self, plan: Plan) -> Plan:
        """A plan within three quarters of what another one takes. Raises: as `plan`."""
        return self.plan("auto", plan.peak_bytes * 3 // 4)

    def build(self, plan: Plan, progress: ProgressCallback) -> Networks:
        """Reads the weights to where the plan says."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        checkpoint, plain, plain_text = self.checkpoint, Form(self.dtype), Form(self.text_form.dtype)
        clip_tokenizer = CLIPTokenizer.from_pretrained(checkpoint.tokenizer)
        with torch.device("meta"):
            transformer = FluxTransformer(checkpoint.transformer_params).requires_grad_(False).eval()
            autoencoder = Autoencoder(checkpoint.autoencoder_params).requires_grad_(False).eval()
            t5 = T5EncoderModel(t5_config(checkpoint.t5_params)).requires_grad_(False).eval()
            clip = CLIPTextModel(clip_config(checkpoint.clip_params, clip_tokenizer)).requires_grad_(False).eval()
        total = self.sizes().total - self.adapters.values * self.dtype.itemsize
        placer = Placer(plan, self.device, self.form, _placed(progress, total))
        placer.put(clip, checkpoint.clip, {key: key for key in checkpoint.clip.keys()}, plain_text)
        placer.put(autoencoder, checkpoint.autoencoder, {key: key for key in checkpoint.autoencoder.keys()}, plain)
        placer.transformer(transformer, checkpoint.transformer)
        placer.t5(t5, checkpoint.t5, self.text_form)
        homes = self._homes(transformer, t5, clip)
        for name, branches in self.adapters.beside.items():
            attach(homes[name], branches)
        if self.compile:
            compile_blocks(transformer)
        # CLIP's position ids are in no file, and wrong without a word when left on the meta device.
        clip.embeddings.position_ids = torch.arange(clip.config.max_position_embeddings, device=self.device)[None]
        for module in (transformer, autoencoder, t5, clip):
            assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())), "not loaded"
        # 3x3 convolutions run 1.16 times faster so on a CPU.
        autoencoder = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        t5_tokenizer = load_t5_tokenizer(checkpoint.tokenizer_2)
        encoders = TextEncoders(t5, clip, t5_tokenizer, clip_tokenizer, self.dtype)
        shelf = LoraShelf(self.adapters.shelf, homes, self.adapters.shelf_values * self.dtype.itemsize)
        return Networks(encoders, transformer, autoencoder, plan, shelf)

    def _homes(self, transformer: FluxTransformer, t5: T5EncoderModel, clip: CLIPTextModel) -> dict[NetworkName, Home]:
        text_dtype = self.text_form.dtype
        return {
            "transformer": Home(transformer, self.dtype),
            "t5": Home(t5, text_dtype),
            "clip": Home(clip, text_dtype),
        }


def compile_blocks(transformer: FluxTransformer) -> None:
    """Compiles each block by itself: eight to ten times quicker than the whole, nearly as fast to run.

    Gives 1.4 to 1.6 on GPUs (published), 1.02 on a CPU. The hooks that stream weights stay outside.
    """
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        block.forward = torch.compile(block.forward)


def draw_blueprint(config: PipelineConfig, progress: ProgressCallback) -> Blueprint:
    """Finds the model, the device and the dtype. Raises: as `load_pipeline`."""
    device = choose_device(config.device)
    choice = choose_dtype(config.dtype, device)
    if config.compile and config.lora_dir is not None:
        raise ConfigError("--compile and --lora-dir exclude each other: compiled blocks cannot change between requests")
    checkpoint = open_checkpoint(config.model, config.text_encoders, progress)
    checkpoint, adapters = adapt(checkpoint, config.loras, config.lora_dir)
    storage: Storage | None = None if config.storage == "native" else config.storage
    return Blueprint(checkpoint, device, choice.dtype, choice.reason, storage, config.compile, adapters)


def work_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Work:
    """One image at the model's own size with its longest text."""
    variant, params = checkpoint.variant, checkpoint.transformer_params
    side = math.isqrt(variant.native_area)
    return Work(
        width=side,
        height=side,
        batch=1,
        text_tokens=variant.max_sequence_length,
        hidden=params.hidden_size,
        mlp_hidden=params.mlp_hidden,
        vae_channels=2 * checkpoint.autoencoder_params.ch,
        itemsize=dtype.itemsize,
    )


def stored_bytes(reader: TensorReader, keys: Iterable[str], form: Form) -> int:
    """What tensors take in memory, laid out in a form."""
    return FlatLayout.of((key, form.meta(reader, key)) for key in keys).nbytes


def _placed(progress: ProgressCallback, total_bytes: int) -> Callable[[int], None]:
    """Adds up what has been placed."""
    done_bytes = 0

    def placed(nbytes: int) -> None:
        nonlocal done_bytes
        done_bytes += nbytes
        progress("loading", done_bytes, total_bytes)

    return placed

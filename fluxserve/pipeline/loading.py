"""From files to a pipeline: open, choose device and dtype, build on the meta device, fill, place. Knows no requests."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fluxserve.config import PipelineConfig
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.transformer import FluxTransformer
from fluxserve.pipeline.flux_pipeline import FluxPipeline
from fluxserve.pipeline.text_encoders import CLIP_LENGTH, TextEncoders
from fluxserve.placement.device import available_bytes, choose_device, choose_dtype
from fluxserve.placement.flat import aligned
from fluxserve.placement.place import BLOCK_PREFIXES, Placer, block_keys, is_modulation, t5_block_keys
from fluxserve.placement.plan import ModelBytes, Plan, Work, make_plan, resident_plan, streaming_plan
from fluxserve.request import ModelCard
from fluxserve.weights.checkpoint import Checkpoint, ProgressCallback, open_checkpoint
from fluxserve.weights.dimensions import ClipParams, T5Params
from fluxserve.weights.reader import TensorReader

log = logging.getLogger(__name__)

GPU_BATCH = 4
"""Samples stepped together on a GPU; a CPU is busy with one."""


def load_pipeline(config: PipelineConfig, progress: ProgressCallback) -> FluxPipeline:
    """Loads what `config` names onto its device. progress: called with (stage, bytes done, bytes in all).

    Raises:
        SourceError, CheckpointError, ConfigError: see `open_checkpoint`.
        DeviceError: the device is not there, or the model does not fit the budget in any way.
    """
    device = choose_device(config.device)
    choice = choose_dtype(config.dtype, device)
    checkpoint = open_checkpoint(config.model, config.text_encoders, progress)
    plan = plan_for(checkpoint, config, device, choice.dtype)
    log.info("%s on %s in %s: %s", checkpoint.id, device, dtype_name(choice.dtype), choice.reason)
    pipeline = _build(checkpoint, plan, device, choice.dtype, progress)
    log.info("%s loaded: %s", checkpoint.id, checkpoint.variant.licence)
    return pipeline


def plan_for(checkpoint: Checkpoint, config: PipelineConfig, device: torch.device, dtype: torch.dtype) -> Plan:
    """What lives where, for one image of the model's own size.

    Raises:
        DeviceError: the budget is too small; names the smallest that works.
    """
    sizes, work = model_bytes(checkpoint, dtype), work_of(checkpoint, dtype)
    budget = config.memory_budget or available_bytes(device)
    plans = {"auto": make_plan, "none": resident_plan, "stream": streaming_plan}
    return plans[config.offload](sizes, work, budget, device.type)


def work_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Work:
    """One image at the model's own size with its longest text."""
    variant, params = checkpoint.variant, checkpoint.transformer_params
    side = math.isqrt(variant.native_area)
    return Work(side, side, 1, variant.max_sequence_length, params.hidden_size, params.mlp_hidden, dtype.itemsize)


def model_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> ModelBytes:
    """The four networks by use, in bytes as they will lie in memory."""
    transformer, t5, text = checkpoint.transformer, checkpoint.t5, text_dtype(dtype)
    blocks, t5_blocks = block_keys(transformer), t5_block_keys(t5)
    modulation = [key for key in transformer.keys() if is_modulation(key)]
    small = [key for key in transformer.keys() if not key.startswith(BLOCK_PREFIXES) and not is_modulation(key)]
    return ModelBytes(
        blocks=tuple(stored_bytes(transformer, block.values(), dtype) for block in blocks),
        modulation=stored_bytes(transformer, modulation, dtype),
        small=stored_bytes(transformer, small, dtype),
        t5_blocks=tuple(stored_bytes(t5, block.values(), text) for block in t5_blocks),
        t5_embedding=stored_bytes(t5, ["shared.weight"], t5.dtype("shared.weight")),
        clip=stored_bytes(checkpoint.clip, checkpoint.clip.keys(), text),
        autoencoder=stored_bytes(checkpoint.autoencoder, checkpoint.autoencoder.keys(), dtype),
    )


def stored_bytes(reader: TensorReader, keys: Iterable[str], dtype: torch.dtype) -> int:
    """What tensors take in memory, laid out: packed ones as they are, the others in `dtype`."""
    total = 0
    for key in keys:
        packed = reader.packed(key)
        dense = math.prod(reader.shape(key)) * dtype.itemsize
        total += aligned(dense) if packed is None else sum(aligned(part.nbytes) for part in packed.parts.values())
    return total


def _build(
    checkpoint: Checkpoint, plan: Plan, device: torch.device, dtype: torch.dtype, progress: ProgressCallback
) -> FluxPipeline:
    text = text_dtype(dtype)
    clip_tokenizer = CLIPTokenizer.from_pretrained(checkpoint.tokenizer)
    with torch.device("meta"):
        transformer = FluxTransformer(checkpoint.transformer_params).requires_grad_(False).eval()
        autoencoder = Autoencoder(checkpoint.autoencoder_params).requires_grad_(False).eval()
        t5 = T5EncoderModel(t5_config(checkpoint.t5_params)).requires_grad_(False).eval()
        clip = CLIPTextModel(clip_config(checkpoint.clip_params, clip_tokenizer)).requires_grad_(False).eval()
    placer = Placer(plan, device, dtype, _placed(progress, model_bytes(checkpoint, dtype).total))
    placer.put(clip, checkpoint.clip, {key: key for key in checkpoint.clip.keys()}, text)
    placer.put(autoencoder, checkpoint.autoencoder, {key: key for key in checkpoint.autoencoder.keys()}, dtype)
    placer.transformer(transformer, checkpoint.transformer)
    placer.t5(t5, checkpoint.t5, text)
    # CLIP's position ids are in no file, and wrong without a word when left on the meta device.
    clip.embeddings.position_ids = torch.arange(clip.config.max_position_embeddings, device=device)[None]
    for module in (transformer, autoencoder, t5, clip):
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())), "not loaded"
    # 3x3 convolutions run 1.16 times faster so on a CPU.
    autoencoder = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    t5_tokenizer = T5Tokenizer.from_pretrained(checkpoint.tokenizer_2)
    encoders = TextEncoders(t5, clip, t5_tokenizer, clip_tokenizer, dtype)
    max_batch = 1 if device.type == "cpu" else GPU_BATCH
    card = model_card(checkpoint, device, dtype)
    return FluxPipeline(encoders, transformer, autoencoder, checkpoint.variant, card, max_batch)


def _placed(progress: ProgressCallback, total_bytes: int) -> Callable[[int], None]:
    """Adds up what has been placed."""
    done_bytes = 0

    def placed(nbytes: int) -> None:
        nonlocal done_bytes
        done_bytes += nbytes
        progress("loading", done_bytes, total_bytes)

    return placed


def text_dtype(dtype: torch.dtype) -> torch.dtype:
    """T5 overflows in float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def t5_config(params: T5Params) -> T5Config:
    """Our own reading of T5 v1.1; nothing in it comes from a file but integers."""
    return T5Config(
        vocab_size=params.vocab_size,
        d_model=params.d_model,
        d_kv=params.d_kv,
        d_ff=params.d_ff,
        num_layers=params.num_layers,
        num_heads=params.num_heads,
        relative_attention_num_buckets=params.relative_attention_num_buckets,
        relative_attention_max_distance=params.relative_attention_max_distance,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        use_cache=False,
    )


def clip_config(params: ClipParams, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The pooled vector is taken at the tokenizer's end token: a wrong id pools the same place for every prompt."""
    return CLIPTextConfig(
        vocab_size=params.vocab_size,
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.num_hidden_layers,
        num_attention_heads=params.num_attention_heads,
        max_position_embeddings=max(params.max_position_embeddings, CLIP_LENGTH),
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def model_card(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> ModelCard:
    """What clients and the front may know of the model."""
    variant = checkpoint.variant
    return ModelCard(
        id=checkpoint.id,
        aliases=variant.aliases,
        variant=variant.name,
        steps=variant.steps,
        max_sequence_length=variant.max_sequence_length,
        guidance_scale=variant.guidance_scale,
        guidance_max=variant.guidance_max,
        native_area=variant.native_area,
        resamples=variant.resamples,
        default_width=variant.default_size[0],
        default_height=variant.default_size[1],
        licence=variant.licence,
        description=variant.description,
        notice=variant.notice,
        device=str(device),
        dtype=dtype_name(dtype),
    )

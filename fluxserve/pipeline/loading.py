"""From files to a pipeline: open, choose device and dtype, build on the meta device, fill, place. Knows no requests."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fluxserve.config import PipelineConfig
from fluxserve.errors import CheckpointError
from fluxserve.flux.autoencoder import Autoencoder
from fluxserve.flux.transformer import FluxTransformer
from fluxserve.pipeline.flux_pipeline import FluxPipeline
from fluxserve.pipeline.text_encoders import CLIP_LENGTH, TextEncoders
from fluxserve.placement.device import check_fits, choose_device, choose_dtype
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
        SourceError, CheckpointError, ConfigError, DeviceError: see `open_checkpoint` and `choose_device`.
    """
    device = choose_device(config.device)
    choice = choose_dtype(config.dtype, device)
    checkpoint = open_checkpoint(config.model, config.text_encoders, progress)
    if config.offload == "auto":
        check_fits(weight_bytes(checkpoint, choice.dtype), device)
    load = _Loader(device, progress, weight_bytes(checkpoint, choice.dtype))
    dtype, text_dtype = choice.dtype, _text_dtype(choice.dtype)
    with torch.device("meta"):
        transformer = FluxTransformer(checkpoint.transformer_params)
        autoencoder = Autoencoder(checkpoint.autoencoder_params)
        t5 = T5EncoderModel(t5_config(checkpoint.t5_params))
        clip_tokenizer = CLIPTokenizer.from_pretrained(checkpoint.tokenizer)
        clip = CLIPTextModel(clip_config(checkpoint.clip_params, clip_tokenizer))
    load.fill(clip, checkpoint.clip, text_dtype)
    load.fill(t5, checkpoint.t5, text_dtype)
    load.fill(transformer, checkpoint.transformer, dtype)
    load.fill(autoencoder, checkpoint.autoencoder, dtype)
    # 3x3 convolutions run 1.16 times faster so on a CPU.
    autoencoder = autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoders = TextEncoders(t5, clip, T5Tokenizer.from_pretrained(checkpoint.tokenizer_2), clip_tokenizer, dtype)
    log.info("%s loaded on %s in %s: %s", checkpoint.id, device, _name(dtype), choice.reason)
    max_batch = 1 if device.type == "cpu" else GPU_BATCH
    card = model_card(checkpoint, device, dtype)
    return FluxPipeline(encoders, transformer, autoencoder, checkpoint.variant, card, max_batch)


def _text_dtype(dtype: torch.dtype) -> torch.dtype:
    """T5 overflows in float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """What all four networks take in memory in `dtype`."""
    sizes = (
        (checkpoint.transformer, dtype),
        (checkpoint.autoencoder, dtype),
        (checkpoint.t5, _text_dtype(dtype)),
        (checkpoint.clip, _text_dtype(dtype)),
    )
    return sum(_elements(reader) * kind.itemsize for reader, kind in sizes)


def _elements(reader: TensorReader) -> int:
    return sum(math.prod(reader.shape(key)) for key in reader.keys())


class _Loader:
    """Fills modules one after the other, reporting the bytes of all."""

    def __init__(self, device: torch.device, progress: ProgressCallback, total_bytes: int) -> None:
        self.device = device
        self.progress = progress
        self.total_bytes = total_bytes
        self.done_bytes = 0

    def fill(self, module: nn.Module, reader: TensorReader, dtype: torch.dtype) -> None:
        """Gives a module built on the meta device its weights; strictly, and leaves nothing on meta.

        On a CPU, tensors stored in `dtype` stay views of the mapped file: nothing is copied.
        """
        state = {key: self._read(reader, key, dtype) for key in reader.keys()}
        if "shared.weight" in state:  # T5's two names for one table
            state["encoder.embed_tokens.weight"] = state["shared.weight"]
        try:
            module.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{reader.source} does not fit its model: {error}") from error
        self._fill_buffers(module)
        module.requires_grad_(False).eval()

    def _read(self, reader: TensorReader, key: str, dtype: torch.dtype) -> Tensor:
        tensor = reader.read(key).to(self.device, dtype)
        self.done_bytes += tensor.nbytes
        self.progress("loading", self.done_bytes, self.total_bytes)
        return tensor

    def _fill_buffers(self, module: nn.Module) -> None:
        """CLIP's position ids are in no file, and wrong without a word when left on the meta device."""
        if isinstance(module, CLIPTextModel):
            positions = torch.arange(module.config.max_position_embeddings, device=self.device)
            module.embeddings.position_ids = positions[None]
        assert not any(tensor.is_meta for tensor in _tensors(module)), "a parameter or buffer was not loaded"


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


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
        dtype=_name(dtype),
    )

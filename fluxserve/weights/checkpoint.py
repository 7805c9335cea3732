"""A complete model on disk: the four networks' tensors, their sizes and the two tokenizers. Knows no devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.dimensions import (
    ClipParams,
    T5Params,
    autoencoder_params,
    clip_params,
    t5_params,
    transformer_params,
)
from fluxserve.models.flux1.shapes import autoencoder_shapes, transformer_shapes
from fluxserve.models.flux1.text_names import clip_shapes, t5_shapes
from fluxserve.models.flux1.variants import VARIANTS, AutoencoderParams, FluxParams, Variant
from fluxserve.tensors.reader import TensorReader, name_some, require_exact
from fluxserve.weights.files.folder import TOKENIZERS, Component, Holdings, look
from fluxserve.weights.files.identify import Part
from fluxserve.weights.hub import fetch as hub
from fluxserve.weights.source import locate

ProgressCallback = hub.ByteProgress
"""(what is being fetched, bytes done, bytes in all)."""

ALL_PARTS: frozenset[Part] = frozenset({"transformer", "autoencoder", "t5", "clip"})
TEXT_PARTS: frozenset[Part] = frozenset({"t5", "clip"})
IMAGE_CONDITIONED = {6: "FLUX.1 Fill", 2: "a FLUX.1 control model (Canny or Depth)"}
"""Kinds of models by the width of an input token over that of an output token; those of text alone have 1."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a pipeline is built from; opening it has checked every name and shape, and read no weights.

    id: what clients know the model by: the Hub id, `demo`, `demo-untrained`, or the folder's or file's stem.
    tokenizer, tokenizer_2: folders of the CLIP and the T5 tokenizer.
    """

    id: str
    variant: Variant
    transformer: TensorReader
    transformer_params: FluxParams
    autoencoder: TensorReader
    autoencoder_params: AutoencoderParams
    t5: TensorReader
    t5_params: T5Params
    clip: TensorReader
    clip_params: ClipParams
    tokenizer: Path
    tokenizer_2: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Those of its weights and of its tokenizers, by name."""
        readers = (self.transformer, self.autoencoder, self.t5, self.clip)
        weights = {path for reader in readers for path in reader.files}
        tokenizers = {path for folder in (self.tokenizer, self.tokenizer_2) for path in folder.iterdir()}
        return tuple(sorted(path for path in weights | tokenizers if path.is_file()))


def open_checkpoint(model: str, text_encoders: str | None, progress: ProgressCallback) -> Checkpoint:
    """Finds, fetches if need be, and checks a model.

    model, text_encoders: see `PipelineConfig`.

    Raises:
        SourceError: the Hub repository is gated, missing or unreachable; the message is a four-line recipe.
        CheckpointError: a file is damaged, incomplete or of a kind that is refused; names it and the first five
            differences.
        ConfigError: `model` or `text_encoders` names nothing.
    """
    source = locate(model, progress)
    encoders = locate(text_encoders, progress, hub.TEXT_FOLDERS).path if text_encoders else None
    holdings = _gather(source.path, encoders)
    checkpoint = _assemble(source.id, holdings)
    _require_fit(checkpoint)
    return checkpoint


def _gather(model: Path, encoders: Path | None) -> Holdings:
    """Looks where parts may lie, the most explicit place first; then nothing may be missing."""
    holdings = Holdings()
    if encoders:
        look(encoders, TEXT_PARTS, holdings)
    look(model, ALL_PARTS, holdings)
    if not model.is_dir():
        look(model.parent, ALL_PARTS - {"transformer"}, holdings)
    if encoders:
        look(encoders, frozenset({"autoencoder"}), holdings)
    missing: list[str] = [part for part in sorted(ALL_PARTS) if part not in holdings.components]
    missing += [name for name in TOKENIZERS if name not in holdings.tokenizers]
    if missing:
        reasons = "".join(f"\n  {reason}" for reason in holdings.unread)
        raise CheckpointError(
            f"{model}: incomplete: found no {', no '.join(missing)} there{f' or in {encoders}' if encoders else ''}; "
            f"put them beside it, or name a folder that holds them with --text-encoders{reasons}"
        )
    return holdings


def _assemble(model_id: str, holdings: Holdings) -> Checkpoint:
    found = holdings.components
    transformer, autoencoder, t5, clip = (found[part] for part in ("transformer", "autoencoder", "t5", "clip"))
    params = transformer_params(transformer.reader, transformer.config)
    return Checkpoint(
        id=model_id,
        variant=variant_of(transformer, params, holdings.variant),
        transformer=transformer.reader,
        transformer_params=params,
        autoencoder=autoencoder.reader,
        autoencoder_params=autoencoder_params(autoencoder.reader, autoencoder.config),
        t5=t5.reader,
        t5_params=t5_params(t5.reader, t5.config),
        clip=clip.reader,
        clip_params=clip_params(clip.reader, clip.config),
        tokenizer=holdings.tokenizers["tokenizer"],
        tokenizer_2=holdings.tokenizers["tokenizer_2"],
    )


def variant_of(transformer: Component, params: FluxParams, named: str | None) -> Variant:
    """The row of VARIANTS: as the files name it, else by the transformer's inputs.

    Raises:
        CheckpointError: the model draws from pictures too, or the name is unknown.
    """
    source = transformer.reader.source
    if params.in_channels != params.out_channels:
        kind = IMAGE_CONDITIONED.get(params.in_channels // params.out_channels, "a model")
        raise CheckpointError(
            f"{source}: is {kind} with {params.in_channels} input channels; fluxserve draws from text, "
            f"with models whose input has {params.out_channels}"
        )
    name = str(named) if named is not None else ("dev" if params.guidance_embed else "schnell")
    if name not in VARIANTS:
        raise CheckpointError(f"{source}: is of variant {name!r}; fluxserve knows {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _require_fit(checkpoint: Checkpoint) -> None:
    """Every network has exactly the tensors its sizes ask for, and the networks fit together.

    Raises:
        CheckpointError: names the file and the differences.
    """
    t5, clip, flux = checkpoint.t5_params, checkpoint.clip_params, checkpoint.transformer_params
    require_exact(checkpoint.transformer, transformer_shapes(flux), "a FLUX.1 transformer of its size")
    require_exact(
        checkpoint.autoencoder,
        autoencoder_shapes(checkpoint.autoencoder_params),
        "a FLUX.1 autoencoder of its size",
    )
    require_exact(checkpoint.t5, t5_shapes(t5), "a T5 encoder of its size")
    require_exact(checkpoint.clip, clip_shapes(clip), "a CLIP text encoder of its size")
    widths = {
        "T5's width": (t5.d_model, flux.context_in_dim),
        "CLIP's width": (clip.hidden_size, flux.vec_in_dim),
        "a packed latent": (4 * checkpoint.autoencoder_params.z_channels, flux.out_channels),
    }
    misfits = [
        f"{what} is {has}, the transformer takes {takes}" for what, (has, takes) in widths.items() if has != takes
    ]
    if misfits:
        raise CheckpointError(f"{checkpoint.transformer.source}: does not fit its companions: {name_some(misfits)}")

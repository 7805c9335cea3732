"""`fluxserve generate`: a prompt or a picture to files, without a server. Imports the torch half only when called."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluxserve import request as words
from fluxserve import sizes
from fluxserve.cli import options
from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.cli.loading import console, load_with_progress
from fluxserve.cli.settings import read_loading
from fluxserve.completion import RequestOptions, check_options, complete_request
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import read_inputs
from fluxserve.request import Control, GenerationRequest, MaskMode, OutputFormat

if TYPE_CHECKING:
    from fluxserve.pipeline.generation import Generation
    from fluxserve.pipeline.pipeline import FluxPipeline

FORMATS: dict[str, OutputFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
STDOUT = "-"


@dataclass(frozen=True)
class Drawing:
    """What to draw beside the prompt, and what from; None is the model's own."""

    n: Annotated[int, typer.Option("--n", help="How many pictures, with seeds seed, seed + 1, ...")] = 1
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in multiples of 16; the model's own, or the image's, if left out.")
    ] = None
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own if left out.")] = None
    seed: Annotated[int | None, typer.Option(help="0 .. 2^64 - 1; random if left out.")] = None
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, for models that take one.")] = None
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            help="A PNG, JPEG or WebP file to redraw, or to vary without a prompt; several for models that take them.",
        ),
    ] = None
    mask: Annotated[
        Path | None, typer.Option(help="A file of the first image's size whose transparent pixels are redrawn.")
    ] = None
    mask_mode: Annotated[
        MaskMode, typer.Option(help="What of the mask is redrawn: what is transparent, white or black.")
    ] = "alpha"
    strength: Annotated[
        float | None, typer.Option(help="How much of the image is redrawn, from just above 0 to 1.")
    ] = None
    control: Annotated[
        Control | None, typer.Option(help="The map to make of the image, for models that draw from one.")
    ] = None
    redux_weight: Annotated[
        list[float] | None,
        typer.Option(help="How strongly the image encoder (--redux) counts an image, 0 to 4; one for each image."),
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid; acts if --true-cfg-scale is above 1.")] = (
        None
    )
    true_cfg_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; above 1 doubles the work.")
    ] = None
    max_sequence_length: Annotated[
        int | None, typer.Option(help="Prompt tokens used; the model's limit if left out.")
    ] = None
    format: Annotated[str | None, typer.Option(help="png, jpeg or webp, for stdout; a file's suffix tells.")] = None
    compression: Annotated[int | None, typer.Option(help="The encoder's quality for jpeg and webp, 0 to 100.")] = None
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Write no prompt and seed into the files.")] = False

    def options(self, output: str) -> RequestOptions:
        """Raises InvalidRequest: the size or the format cannot be."""
        width, height = parse_size(self.size)
        return RequestOptions(
            n=self.n,
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            seed=self.seed,
            strength=self.strength,
            control=self.control,
            redux=self.redux_weight or None,
            negative_prompt=self.negative_prompt,
            true_cfg_scale=self.true_cfg_scale,
            max_sequence_length=self.max_sequence_length,
            output_format=_output_format(output, self.n, self.format),
            output_compression=self.compression,
            metadata=not self.no_metadata,
        )


@options.spread
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    model: options.ModelOption = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .png, .jpg or .webp file; - writes to stdout.")
    ] = "out.png",
    drawing: Drawing,
    loading: options.LoadingFlags,
) -> None:
    """Draw pictures from a prompt, or from a picture, into files."""
    with failures_to_exit_codes():
        request_options = drawing.options(output)
        check_options(request_options)  # what is wrong here should not cost a minute of loading
        inputs = read_inputs(drawing.image, drawing.mask, drawing.mask_mode)
        pipeline = load_with_progress(read_loading({"model": model, **loading}))
        request = complete_request(pipeline.card, prompt, inputs=inputs, **request_options)
        _write(_run(pipeline, request), output)


def _output_format(output: str, n: int, asked: str | None) -> OutputFormat:
    """What is asked for, else what the file's name says."""
    if output == STDOUT:
        if n > 1:
            raise InvalidRequest("n must be 1 when writing to stdout", param="n")
        return _named_format(asked or "png", "format must be png, jpeg or webp", "format")
    path = Path(output)
    suffix = _named_format(path.suffix.lstrip("."), "output must end in .png, .jpg, .jpeg or .webp", "output")
    if not path.parent.is_dir():
        raise InvalidRequest(f"output must lie in an existing folder; there is no {str(path.parent)!r}", param="output")
    if asked is not None and _named_format(asked, "format must be png, jpeg or webp", "format") != suffix:
        raise InvalidRequest(f"format {asked} and the output {path.name!r} disagree", param="format")
    return suffix


def _named_format(name: str, rule: str, param: str) -> OutputFormat:
    if name.lower() not in FORMATS:
        raise InvalidRequest(f"{rule}, got {name!r}", param=param)
    return FORMATS[name.lower()]


def parse_size(size: str | None) -> tuple[int, int] | tuple[None, None]:
    """(width, height) of a --size option; None, None when it is left out or auto."""
    if size in (None, "auto"):
        return None, None
    width, height = sizes.parse_size(size)
    sizes.check_size(width, height)
    return width, height


def _run(pipeline: FluxPipeline, request: GenerationRequest) -> Generation:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("steps", total=None)

        def advance(step: words.Progress) -> None:
            bar.update(task, advance=1, total=len(request.seeds) * step.steps)

        return pipeline.run(request, callback=advance)


def _write(generation: Generation, output: str) -> None:
    if output == STDOUT:
        sys.stdout.buffer.write(generation[0].data)
        return
    for image, path in zip(generation, _paths(Path(output), len(generation)), strict=True):
        path.write_bytes(image.data)
        console.print(f"{path}  {image.width}x{image.height}  seed {image.seed}", highlight=False)
    timings = generation.timings
    console.print(
        f"{timings.total_ms / 1000:.2f} s: text {timings.text_ms / 1000:.2f}, "
        f"{timings.steps} steps {timings.denoise_ms / 1000:.2f}, decode {timings.decode_ms / 1000:.2f}",
        highlight=False,
    )


def _paths(output: Path, n: int) -> list[Path]:
    """One name as it is; several numbered from 1 before the suffix."""
    if n == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i}") for i in range(1, n + 1)]

"""`fluxserve generate`: a prompt to a file, without a server. Imports the torch half only when called."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluxserve.cli import options
from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.cli.loading import console, load_with_progress
from fluxserve.cli.settings import read_loading
from fluxserve.errors import InvalidRequest
from fluxserve.request import GenerationRequest, OutputFormat, check_size, complete_request

if TYPE_CHECKING:
    from fluxserve.pipeline.flux_pipeline import FluxPipeline
    from fluxserve.pipeline.generation import Generation

FORMATS: dict[str, OutputFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
STDOUT = "-"


@dataclass(frozen=True)
class Drawing:
    """What to draw beside the prompt; None is the model's own."""

    n: Annotated[int, typer.Option("--n", help="How many pictures, with seeds seed, seed + 1, ...")] = 1
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in multiples of 16; the model's own if left out.")] = (
        None
    )
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own if left out.")] = None
    seed: Annotated[int | None, typer.Option(help="0 .. 2^63 - 1; random if left out.")] = None
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, for models that take one.")] = None


@options.spread
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    model: options.ModelOption = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .png, .jpg or .webp file; - writes a PNG to stdout.")
    ] = "out.png",
    drawing: Drawing,
    loading: options.LoadingFlags,
) -> None:
    """Draw pictures from a prompt, into files."""
    with failures_to_exit_codes():
        output_format = _output_format(output, drawing.n)
        width, height = parse_size(drawing.size)
        pipeline = load_with_progress(read_loading({"model": model, **loading}))
        request = complete_request(
            pipeline.card,
            prompt,
            n=drawing.n,
            width=width,
            height=height,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            seed=drawing.seed,
            output_format=output_format,
        )
        _write(_run(pipeline, request), output)


def _output_format(output: str, n: int) -> OutputFormat:
    """Decided before the model is loaded: a wrong suffix should not cost a minute."""
    if output == STDOUT:
        if n > 1:
            raise InvalidRequest("n must be 1 when writing to stdout", param="n")
        return "png"
    path = Path(output)
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FORMATS:
        raise InvalidRequest(f"output must end in .png, .jpg, .jpeg or .webp, got {output!r}", param="output")
    if not path.parent.is_dir():
        raise InvalidRequest(f"output must lie in an existing folder, {str(path.parent)!r} is none", param="output")
    return FORMATS[suffix]


def parse_size(size: str | None) -> tuple[int, int] | tuple[None, None]:
    """(width, height) of a --size option; None, None when it is left out."""
    if size is None:
        return None, None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", size)
    if match is None:
        raise InvalidRequest(f"size must be WIDTHxHEIGHT, for example 512x768, got {size!r}", param="size")
    width, height = int(match[1]), int(match[2])
    check_size(width, height)
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
        task = bar.add_task("steps", total=len(request.seeds) * request.num_inference_steps)
        return pipeline.run(request, callback=lambda _: bar.advance(task))


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

"""`fluxserve doctor`: what machine, libraries and model files there are, and what would be used. Loads no weights."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fluxserve.cli import options
from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.cli.settings import read_loading
from fluxserve.config import PipelineConfig
from fluxserve.errors import SourceError
from fluxserve.request import Placement
from fluxserve.sizes import References

GIB = 2**30


@options.spread
def doctor(*, model: options.ModelArgument = None, loading: options.LoadingFlags) -> None:
    """Say what is here, what a file is, and what will be used. Fetches nothing."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, below
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    with failures_to_exit_codes():
        config = read_loading({"model": model, **loading})
        try:
            for row in _machine():
                table.add_row(*map(escape, row))
            described, draws = _description(Path(config.model))
            for row in described:
                table.add_row(*map(escape, row))
            for row in _choice(config) if draws else []:
                table.add_row(*map(escape, row))
        except SourceError as error:
            table.add_row("model", escape(error.message))
        finally:
            Console().print(table, highlight=False)


def _machine() -> list[tuple[str, str]]:
    import torch
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_CACHE

    from fluxserve.placement.device import available_bytes

    return [
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {_cpu_name()}"),
        ("memory", f"{_gib(available_bytes(torch.device('cpu')))} available"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("GPUs", ", ".join(_gpus()) or "none"),
        ("Hub token", "found" if get_token() else "none (HF_TOKEN is not set)"),
        ("Hub cache", HF_HUB_CACHE),
    ]


def _cpu_name() -> str:
    import torch

    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "unknown")


def _gpus() -> list[str]:
    import torch

    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{gpu.name} ({_gib(gpu.total_memory)})" for gpu in properties]


def _description(path: Path) -> tuple[list[tuple[str, str]], bool]:
    """What a file or folder holds, and whether there is a transformer to plan for. Silent on what is on the Hub.

    Raises:
        CheckpointError: it is damaged or refused; says what it is and what to use instead.
    """
    from fluxserve.weights.describe import describe

    if not path.exists():
        return [], True
    found = describe(path)
    rows = [("holds", str(network)) for network in found.networks]
    rows += [("lacks", ", ".join(found.missing))] if found.missing else []
    return rows, any(network.part.role == "denoiser" for network in found.networks)


def _choice(config: PipelineConfig) -> list[tuple[str, str]]:
    from fluxserve.pipeline.cards import placement_of
    from fluxserve.pipeline.networks import draw_blueprint
    from fluxserve.placement.device import available_bytes

    blueprint = draw_blueprint(config, lambda *_: None)
    checkpoint, device, dtype = blueprint.checkpoint, blueprint.device, blueprint.dtype
    plan = blueprint.plan(config.offload, config.memory_budget)
    return [
        ("device", f"{device}, {_gib(available_bytes(device))} available"),
        ("compute", blueprint.product or "exact"),
        ("dtype", f"{str(dtype).removeprefix('torch.')}: {blueprint.reason}"),
        ("model", f"{checkpoint.id} ({checkpoint.variant.name}): {checkpoint.variant.description}"),
        ("licence", checkpoint.variant.licence),
        *(("files", reader.source) for reader in checkpoint.readers.values()),
        ("weights", _bytes(blueprint.sizes().total)),
        *_placement(placement_of(checkpoint, plan, device, blueprint.block_format)),
        *_references(checkpoint.variant.references, plan.max_pixels),
    ]


def _references(references: References | None, max_pixels: int) -> list[tuple[str, str]]:
    """How many pictures it draws by, and how large all may be."""
    if references is None:
        return []
    return [("draws by", f"{references.most} pictures at most, {max_pixels:,} pixels together with what is drawn")]


def _placement(placement: Placement) -> list[tuple[str, str]]:
    """What lives where, in bytes."""
    missing = placement.peak_bytes - placement.budget_bytes
    fit = "fits" if missing <= 0 else f"{missing:,} bytes are missing"
    blocks = placement.resident_blocks + placement.streamed_blocks
    return [
        ("budget", f"{_bytes(placement.budget_bytes)}; the most needed is {_bytes(placement.peak_bytes)}: {fit}"),
        ("resident", f"{placement.resident_blocks} of {blocks} transformer blocks"),
        ("streamed", f"{_bytes(placement.streamed_bytes)} each step"),
        ("text", f"text encoder {placement.text_encoder}"),
        ("autoencoder", placement.autoencoder),
        ("step", f"{placement.step_s:.2f} s expected, at the model's own size"),
    ]


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({_gib(count)})"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"

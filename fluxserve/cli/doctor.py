"""`fluxserve doctor`: what machine, libraries and model files there are, and what would be used. Loads no weights."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fluxserve.cli import options
from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.config import PipelineConfig
from fluxserve.errors import SourceError

if TYPE_CHECKING:
    from fluxserve.placement.plan import Plan

GIB = 2**30


def doctor(
    model: Annotated[str, typer.Argument(envvar="FLUXSERVE_MODEL", help=options.MODEL_HELP)] = PipelineConfig.model,
    device: options.DeviceOption = PipelineConfig.device,
    dtype: options.DtypeOption = PipelineConfig.dtype,
    offload: options.OffloadOption = PipelineConfig.offload,
    text_encoders: options.TextEncodersOption = None,
    memory_budget: options.MemoryBudgetOption = None,
) -> None:
    """Say what is here and what will be used. Fetches nothing."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, below
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    config = PipelineConfig(model, device, dtype, offload, text_encoders, options.parse_bytes(memory_budget))
    with failures_to_exit_codes():
        try:
            for name, value in _machine():
                table.add_row(name, value)
            for name, value in _choice(config):
                table.add_row(name, value)
        except SourceError as error:
            table.add_row("model", error.message)
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


def _choice(config: PipelineConfig) -> list[tuple[str, str]]:
    from fluxserve.pipeline.loading import model_bytes, plan_for
    from fluxserve.placement.device import available_bytes, choose_device, choose_dtype
    from fluxserve.weights.checkpoint import open_checkpoint

    device = choose_device(config.device)
    choice = choose_dtype(config.dtype, device)
    checkpoint = open_checkpoint(config.model, config.text_encoders, lambda *_: None)
    readers = (checkpoint.transformer, checkpoint.t5, checkpoint.clip, checkpoint.autoencoder)
    return [
        ("device", f"{device}, {_gib(available_bytes(device))} available"),
        ("dtype", f"{str(choice.dtype).removeprefix('torch.')}: {choice.reason}"),
        ("model", f"{checkpoint.id} ({checkpoint.variant.name}): {checkpoint.variant.description}"),
        ("licence", checkpoint.variant.licence),
        *(("files", reader.source) for reader in readers),
        ("weights", _bytes(model_bytes(checkpoint, choice.dtype).total)),
        *_plan(plan_for(checkpoint, config, device, choice.dtype)),
    ]


def _plan(plan: Plan) -> list[tuple[str, str]]:
    """What lives where, in bytes."""
    blocks = f"{len(plan.resident)} of {len(plan.resident) + len(plan.streamed)} transformer blocks resident"
    fit = (
        "fits" if plan.peak_bytes <= plan.budget_bytes else f"{plan.peak_bytes - plan.budget_bytes:,} bytes are missing"
    )
    return [
        ("budget", f"{_bytes(plan.budget_bytes)}; the most needed is {_bytes(plan.peak_bytes)}: {fit}"),
        ("placement", f"{blocks}, {_bytes(plan.streamed_bytes)} streamed each step; T5 {plan.t5}"),
        ("autoencoder", "in tiles" if plan.tiled else "whole"),
    ]


def _bytes(count: int) -> str:
    return f"{count:,} bytes ({_gib(count)})"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"

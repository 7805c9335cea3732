"""The options that several commands share, each written once. Knows no command."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from fluxserve.config import Dtype, Offload, Storage

MODEL_HELP = (
    "demo, a Hub id such as black-forest-labs/FLUX.1-schnell, a folder in diffusers' layout, "
    "or a flux1-*.safetensors file."
)

Model = Annotated[str, typer.Option("--model", "-m", envvar="FLUXSERVE_MODEL", help=MODEL_HELP)]
DeviceOption = Annotated[
    str, typer.Option("--device", envvar="FLUXSERVE_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", envvar="FLUXSERVE_DTYPE", help="What to compute in.")]
OffloadOption = Annotated[
    Offload,
    typer.Option(
        "--offload",
        envvar="FLUXSERVE_OFFLOAD",
        help="auto streams what does not fit the memory, none keeps all on the device, stream as little as possible.",
    ),
]
TextEncodersOption = Annotated[
    str | None,
    typer.Option(
        "--text-encoders",
        envvar="FLUXSERVE_TEXT_ENCODERS",
        help="A folder or Hub id with the text encoders and tokenizers, for a transformer file without them.",
    ),
]
MemoryBudgetOption = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        envvar="FLUXSERVE_MEMORY_BUDGET",
        help="How much of the device's memory to use, for example 8GiB; all that is free if left out.",
    ),
]

StorageOption = Annotated[
    Storage,
    typer.Option(
        "--storage", envvar="FLUXSERVE_STORAGE", help="fp8 or int8: half the memory for the blocks, a small error."
    ),
]

LoraOption = Annotated[
    list[str] | None, typer.Option("--lora", help="A LoRA that changes the model, as PATH or PATH:SCALE; repeatable.")
]


def parse_bytes(text: str | None) -> int | None:
    """8GiB, 500MB, 1000000: bytes.

    Raises:
        typer.BadParameter: not a size.
    """
    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"a size such as 8GiB or 500MB is wanted, got {text!r}") from None

"""The options that several commands share, each written once. Knows no command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from fluxserve.config import Dtype, Offload, PipelineConfig, Storage, Verify

MODEL_HELP = (
    "demo, schnell, dev, a Hub id such as black-forest-labs/FLUX.1-schnell, a folder in diffusers' layout, "
    "or a transformer's .safetensors or .gguf file."
)

ModelOption = Annotated[str, typer.Option("--model", "-m", envvar="FLUXSERVE_MODEL", help=MODEL_HELP)]
ModelArgument = Annotated[str, typer.Argument(envvar="FLUXSERVE_MODEL", help=MODEL_HELP)]


@dataclass(frozen=True)
class Loading:
    """How a command loads a model. What each option means: see `PipelineConfig`."""

    device: Annotated[
        str, typer.Option("--device", envvar="FLUXSERVE_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")
    ] = PipelineConfig.device
    dtype: Annotated[Dtype, typer.Option("--dtype", envvar="FLUXSERVE_DTYPE", help="What to compute in.")] = (
        PipelineConfig.dtype
    )
    offload: Annotated[
        Offload,
        typer.Option(
            "--offload",
            envvar="FLUXSERVE_OFFLOAD",
            help="auto streams what does not fit the memory, none keeps all on the device, "
            "stream as little as possible.",
        ),
    ] = PipelineConfig.offload
    text_encoders: Annotated[
        str | None,
        typer.Option(
            "--text-encoders",
            envvar="FLUXSERVE_TEXT_ENCODERS",
            help="A folder or Hub id with the text encoders and tokenizers, for a transformer file without them.",
        ),
    ] = PipelineConfig.text_encoders
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            envvar="FLUXSERVE_MEMORY_BUDGET",
            help="How much of the device's memory to use, for example 8GiB; "
            "if left out, all that is free, on a CPU half of it.",
        ),
    ] = None
    storage: Annotated[
        Storage,
        typer.Option(
            "--storage", envvar="FLUXSERVE_STORAGE", help="fp8 or int8: half the memory for the blocks, a small error."
        ),
    ] = PipelineConfig.storage
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            envvar="FLUXSERVE_COMPILE",
            help="Compile the transformer's blocks: slower to the first picture, then faster.",
        ),
    ] = PipelineConfig.compile
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", help="A LoRA that changes the model, as PATH or PATH:SCALE; repeatable."),
    ] = None
    verify: Annotated[
        Verify,
        typer.Option(
            "--verify",
            envvar="FLUXSERVE_VERIFY",
            help="Check files whose SHA-256 is known: auto those that are new or have changed, always all, off none.",
        ),
    ] = PipelineConfig.verify

    def config(self, model: str) -> PipelineConfig:
        """Raises: typer.BadParameter: the budget is not a size."""
        texts = {"memory_budget": _bytes(self.memory_budget), "lora": tuple(self.lora or ())}
        return PipelineConfig(model, **asdict(self) | texts)


def _bytes(text: str | None) -> int | None:
    """8GiB, 500MB, 1000000: bytes."""
    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise typer.BadParameter(f"a size such as 8GiB or 500MB is wanted, got {text!r}") from None


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which an option for each field stands for every parameter of a dataclass's type.

    typer reads options from a function's signature; the fields are written as its parameters would be.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups = {p.name: p.annotation for p in parameters if isinstance(p.annotation, type) and is_dataclass(p.annotation)}

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    options = [option for p in parameters for option in (_options(groups[p.name]) if p.name in groups else [p])]
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return run


def _options(group: type[Any]) -> Iterator[inspect.Parameter]:
    """A keyword parameter for each field."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )

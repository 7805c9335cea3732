"""The options of the pipeline, the server and the engine: their one list, with defaults, bounds and help.

Plain data. The command line, the variables, `fluxserve.toml`, the Python parameters and docs/options.md are made from
it by `cli/options.py`, `cli/settings.py` and `takes_fields_of`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from fluxserve.errors import ConfigError
from fluxserve.request import Solver
from fluxserve.sizes import MAX_INPUT_IMAGES, MIN_PIXELS

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Offload = Literal["auto", "none", "stream"]
Storage = Literal["native", "fp8", "int8"]
Compute = Literal["exact", "int8", "fp8"]
Verify = Literal["auto", "always", "off"]
ResponseFormat = Literal["url", "b64_json"]

P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What makes a field an option, which people may set.

    group: of the options it is shown with. name: as people write it, where that is not the field's name. size: bytes,
    which people may write as 8GiB. duration: seconds, which people may write as 15m. gt, ge, le: bounds. check: returns
    a value, or raises ValueError. sensitive: it runs code or decides who gets in, so that a settings file must have
    been named to set it.
    """

    help: str
    group: str
    _: KW_ONLY
    name: str | None = None
    size: bool = False
    duration: bool = False
    gt: float | None = None
    ge: float | None = None
    le: float | None = None
    check: Callable[[Any], Any] | None = None
    sensitive: bool = False


@dataclass(frozen=True)
class PipelineConfig:
    """What to load and where.

    text_encoders: holds the folders of text encoders and tokenizers. memory_budget: bytes. storage: a
    scale for each row of a matrix, computed at load.
    """

    model: Annotated[
        str,
        Option(
            "demo, klein, zimage-turbo, schnell, dev, krea, kontext, a Hub id such as black-forest-labs/FLUX.1-dev, a "
            "folder in diffusers' layout, or a transformer's .safetensors or .gguf file.",
            "model",
        ),
    ] = "demo"
    _: KW_ONLY
    variant: Annotated[
        str | None,
        Option(
            "Which model a file is, such as krea, kontext, klein-base or zimage, where neither it nor its name tells.",
            "model",
        ),
    ] = None
    text_encoders: Annotated[
        str | None,
        Option(
            "A folder or Hub id with the text encoders and tokenizers, for a transformer file that has none beside it.",
            "model",
        ),
    ] = None
    redux: Annotated[
        str | None,
        Option(
            "A folder or Hub id with FLUX.1 Redux (image_encoder and image_embedder), by which dev and schnell vary "
            "pictures.",
            "model",
        ),
    ] = None
    loras: Annotated[
        Sequence[str],
        Option("A LoRA that changes the model from the start, as PATH or PATH:SCALE.", "model", name="lora"),
    ] = ()
    lora_dir: Annotated[
        str | None, Option("A folder of LoRAs that requests may name, by the files' stems.", "model")
    ] = None
    max_input_images: Annotated[
        int | None,
        Option(
            "The most pictures of an edit, for models that draw by them; by default what their makers name, klein 4.",
            "model",
            ge=1,
            le=MAX_INPUT_IMAGES,
        ),
    ] = None
    verify: Annotated[
        Verify,
        Option(
            "Check files of known SHA-256 first: auto those that are new or changed, always all, off none.", "model"
        ),
    ] = "auto"
    device: Annotated[
        str, Option("auto, cpu, cuda, cuda:N or mps; of a server several, as in cuda:0,cuda:1.", "device")
    ] = "auto"
    dtype: Annotated[Dtype, Option("What to compute in: auto, bfloat16, float16 or float32.", "device")] = "auto"
    memory_budget: Annotated[
        int | None,
        Option(
            "How much of the device's memory to use, e.g. 8GiB; all that is free, on a CPU half of it.",
            "device",
            size=True,
            gt=0,
        ),
    ] = None
    storage: Annotated[Storage, Option("fp8 or int8: half the memory for the blocks, a small error.", "device")] = (
        "native"
    )
    compute: Annotated[
        Compute,
        Option(
            "exact, or the blocks' products in 8 bits, faster with a small error: int8 on CPUs with VNNI or AMX and "
            "GPUs from Ampere on, fp8 on GPUs from Ada on.",
            "device",
        ),
    ] = "exact"
    solver: Annotated[
        Solver,
        Option(
            "How requests that do not say get from step to step: euler, as the models were published, or dpmpp2m, of "
            "second order, which needs about half the steps.",
            "model",
        ),
    ] = "euler"
    step_cache: Annotated[
        float | None,
        Option(
            "Skip most blocks of steps whose first block changes nearly what it changed before: how far it may be off, "
            "such as 0.1; lossy, for requests of more than 8 steps.",
            "model",
            gt=0,
            le=1,
        ),
    ] = None
    compile: Annotated[
        bool,
        Option("Compile the transformer's blocks: slower to the first picture of each size, then faster.", "device"),
    ] = False
    offload: Annotated[
        Offload,
        Option("auto streams what does not fit, none keeps all on the device, stream as little as possible.", "device"),
    ] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.loras, list):
            object.__setattr__(self, "loras", tuple(self.loras))

    def check(self) -> None:
        """What settings have been checked for, for values that come from Python.

        Raises:
            ConfigError: an option does not take its value.
        """
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(hint))}, got {getattr(self, name)!r}")
        if self.memory_budget is not None and not (type(self.memory_budget) is int and self.memory_budget > 0):
            raise ConfigError(f"memory_budget must be a number of bytes above 0, got {self.memory_budget!r}")
        if isinstance(self.loras, str):
            raise ConfigError(f"loras must be a sequence of PATH or PATH:SCALE, got the text {self.loras!r}")


@dataclass(frozen=True)
class HostingConfig:
    """How the workers of one model live. idle_timeout_s: None: as `ModelConfig.idle_timeout_s` says; 0: never."""

    workers: Annotated[
        int | None,
        Option("How many workers draw, on the devices in turn; by default one a device.", "hosting", gt=0, le=64),
    ] = None
    idle_timeout_s: Annotated[
        float | None,
        Option(
            "Unload a model that nobody has asked for so long, e.g. 15m; 0: never. By default never for one model, "
            "15m for several.",
            "hosting",
            name="idle_timeout",
            duration=True,
            ge=0,
        ),
    ] = None
    served_model_names: Annotated[
        tuple[str, ...], Option("A further name for the model.", "hosting", name="served_model_name")
    ] = ()


@dataclass(frozen=True)
class ModelConfig:
    """One model that is served: what to load and where, and how its workers live.

    pipeline: its device may be several, separated by commas. idle_timeout_s: seconds; None: it is never unloaded for
    being idle. preload: it is loaded at the start; else when it is first asked for.
    """

    pipeline: PipelineConfig
    hosting: HostingConfig = HostingConfig()  # it is frozen
    _: KW_ONLY
    idle_timeout_s: float | None = None
    preload: bool = True

    @property
    def label(self) -> str:
        """What it is called until its card is known: no path of this machine."""
        return Path(self.pipeline.model).name if os.path.lexists(self.pipeline.model) else self.pipeline.model

    @property
    def pipelines(self) -> tuple[PipelineConfig, ...]:
        """Of each worker."""
        devices = [device.strip() for device in self.pipeline.device.split(",") if device.strip()] or ["auto"]
        count = self.hosting.workers or len(devices)
        return tuple(replace(self.pipeline, device=devices[i % len(devices)]) for i in range(count))


@dataclass(frozen=True)
class EngineConfig:
    """Bounds on what is accepted, and how the worker is watched. Times are seconds of monotonic clock.

    max_work is doubled by true CFG. max_job_seconds: from a job's first step to its end. ageing: how much of its
    remaining time a job's waiting makes up for (0: shortest first for ever; large: first come, first served).
    hand_over: jobs the worker may hold at once. watchdog_floor_s: the least silence that counts as hung;
    unmeasured_grace_s: the same for work whose speed is not known yet; loading_grace_s: without a loading chunk.
    back_off_s: the first pause before a restart that follows no finished job, doubled up to back_off_max_s.
    max_failed_starts: starts in a row that never reach ready; max_barren_deaths: deaths in a row with no job finished.
    """

    max_queue: Annotated[int, Option("How many requests may wait.", "limits", gt=0)] = 32
    max_work: Annotated[
        int, Option("The most pixel-steps of one request: n x width x height x steps.", "limits", gt=0)
    ] = 10 * 1024 * 1024 * 50
    max_job_seconds: Annotated[float, Option("How long one request may run.", "limits", gt=0)] = 3600.0
    max_attempts: Annotated[int, Option("Worker deaths after which a request fails.", "limits", gt=0)] = 2
    ageing: Annotated[float, Option("How much waiting counts against being short.", "limits", ge=0, le=10)] = 0.1
    drain_timeout_s: Annotated[
        float, Option("How long open requests may take at the end, in seconds.", "limits", name="drain_timeout", gt=0)
    ] = 30.0
    hand_over: int = 8
    watchdog_floor_s: float = 10.0
    unmeasured_grace_s: float = 300.0
    loading_grace_s: float = 600.0
    back_off_s: float = 1.0
    back_off_max_s: float = 30.0
    max_failed_starts: int = 5
    max_barren_deaths: int = 10


def _web_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s?#]+", value):
        raise ValueError("an address such as https://pictures.example/flux is wanted")
    return value


def _store_address(value: str) -> str:
    """Keys belong into the storage's own variables: an address stands in ps, logs and errors."""
    if not re.fullmatch(r"(s3|gs|az)://[^\s/?#@:]+(/[^\s?#@]*)?|file:///[^?#]+", value):
        raise ValueError(
            "an address such as s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder is "
            "wanted, without keys"
        )
    return value


_HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://((?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]|\*)(?::([0-9]+|\*))?/?"
)


def _host_names(values: tuple[str, ...]) -> tuple[str, ...]:
    """In lower case, without port; * stands for all names, *.NAME for those that end so."""
    names = tuple(re.sub(r":[0-9]+$", "", value.lower()).removesuffix(".") for value in values)
    if not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("a host name such as pictures.example, *.pictures.example or * is wanted")
    return names


def _web_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """As browsers write them: in lower case, without path and the scheme's own port."""
    return tuple(_web_origin(value.strip().lower()) for value in values)


def _web_origin(value: str) -> str:
    if value in ("*", "null"):
        return value
    match = _ORIGIN.fullmatch(value)
    if match is None:
        raise ValueError(
            "an origin such as https://page.example, https://*.page.example, http://localhost:* or * is wanted"
        )
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and port != {"http": "80", "https": "443"}.get(scheme) else "")


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        ipaddress.ip_network(value)
    return values


@dataclass(frozen=True)
class ServerConfig:
    """The front's options: what it accepts, from whom, and how it answers.

    public_url: None: what the request said. api_keys: none: everybody may; those of api_key_file are among them once
    the settings are read. rate_limit, None: unlimited.
    """

    host: Annotated[str, Option("The address to listen on.", "network", sensitive=True)] = "127.0.0.1"
    port: Annotated[int, Option("The port to listen on; 0: any free.", "network", ge=0, le=65535)] = 1234
    public_url: Annotated[
        str | None, Option("What image URLs start with.", "network", check=_web_address, sensitive=True)
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        Option(
            "Addresses or networks of proxies whose X-Forwarded-* and Forwarded headers count.",
            "network",
            check=_networks,
            sensitive=True,
        ),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        Option(
            "A further Host name that is served, such as host.docker.internal; *.NAME, or * for any.",
            "network",
            name="allowed_host",
            check=_host_names,
            sensitive=True,
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Option(
            "A web origin whose pages may call, such as https://page.example; * for its names or port, or alone.",
            "network",
            name="cors_origin",
            check=_web_origins,
            sensitive=True,
        ),
    ] = ()
    keep_alive_s: Annotated[
        float,
        Option(
            "How long an answered connection may wait for its next request, in seconds.",
            "network",
            name="keep_alive",
            ge=1,
            le=3600,
        ),
    ] = 75.0
    max_connections: Annotated[int, Option("How many connections may be open.", "network", gt=0)] = 1024

    api_keys: Annotated[
        tuple[str, ...],
        Option(
            "A key clients must send; visible in ps: prefer the variable.", "access", name="api_key", sensitive=True
        ),
    ] = field(default=(), repr=False)
    api_key_file: Annotated[
        Path | None, Option("A file of further keys, one a line; # begins a comment.", "access", sensitive=True)
    ] = None
    admin_keys: Annotated[
        tuple[str, ...],
        Option(
            "A key that may load and unload models; where there are keys, no other may.",
            "access",
            name="admin_key",
            sensitive=True,
        ),
    ] = field(default=(), repr=False)
    insecure: Annotated[bool, Option("Listen beyond this machine without a key.", "access", sensitive=True)] = False
    rate_limit: Annotated[int | None, Option("Requests a minute for each client.", "access", gt=0)] = None

    output_dir: Annotated[
        Path | None,
        Option(
            "Where the server makes a folder of its own for images; by default in the user's cache, one a port.",
            "store",
        ),
    ] = None
    store: Annotated[
        str | None,
        Option(
            "Where several servers have images, answers and jobs in common: s3://BUCKET/PREFIX, gs://, az:// or "
            "file:///FOLDER.",
            "store",
            check=_store_address,
            sensitive=True,
        ),
    ] = None
    store_redirect: Annotated[
        bool, Option("Send who asks for an image on to the shared store, where it signs URLs.", "store")
    ] = False
    url_ttl_s: Annotated[float, Option("How long image URLs live, in seconds.", "store", name="url_ttl", gt=0)] = 3600.0
    store_quota_bytes: Annotated[
        int, Option("How much the images may take.", "store", name="store_quota", size=True, gt=0)
    ] = 2 * 2**30
    metadata: Annotated[bool, Option("Write no prompt and seed into the images.", "store")] = True

    max_pixels: Annotated[int, Option("The most pixels of an image.", "limits", ge=MIN_PIXELS)] = 2048 * 2048
    max_input_pixels: Annotated[int, Option("The most pixels of an uploaded image.", "limits", gt=0)] = 4096 * 4096

    preload: Annotated[
        bool, Option("Load several models at the start, not each when it is first asked for.", "hosting")
    ] = False
    strict_model: Annotated[bool, Option("Refuse OpenAI's model names.", "answers")] = False
    default_response_format: Annotated[
        ResponseFormat, Option("What clients get that do not say: url or b64_json.", "answers")
    ] = "url"
    strict: Annotated[bool, Option("Refuse unknown parameters.", "answers")] = False
    content_filter: Annotated[
        str | None,
        Option("module:function, asked with (prompt, image) before each generation.", "answers", sensitive=True),
    ] = None
    studio: Annotated[bool, Option("Serve no page to draw in.", "answers")] = True
    mcp: Annotated[bool, Option("Give agents no tools at /mcp.", "answers")] = True
    hf: Annotated[bool, Option("Answer no Hugging Face clients at /hf.", "answers")] = True
    sdapi: Annotated[bool, Option("Answer no clients of Stable Diffusion WebUI at /sdapi/v1.", "answers")] = True
    responses: Annotated[bool, Option("Answer no Responses API at /v1/responses.", "answers")] = True
    log_prompts: Annotated[bool, Option("Write each request's prompt into the log.", "answers")] = False


def takes_fields_of(
    config: Callable[P, C],
) -> Callable[[Callable[[type[T], C], T]], Callable[Concatenate[type[T], P], T]]:
    """Turns a constructor that takes a config into one that takes the config's fields, for type checkers too.

    Raises (the constructor): TypeError: a parameter is no field; names those there are.
    """
    names = [each.name for each in fields(config)]  # type: ignore[arg-type]

    def spread(build: Callable[[type[T], C], T]) -> Callable[Concatenate[type[T], P], T]:
        def construct(cls: type[T], /, *args: P.args, **options: P.kwargs) -> T:
            unknown = [name for name in options if name not in names]
            if unknown:
                raise TypeError(f"{build.__name__} takes no {', '.join(unknown)}; it takes {', '.join(names)}")
            return build(cls, config(*args, **options))

        construct.__name__, construct.__qualname__ = build.__name__, build.__qualname__
        construct.__doc__ = build.__doc__
        return construct

    return spread

"""The options of the pipeline and of the server: each default's one home. Plain data; reading flags is the CLI's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Device = str
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Offload = Literal["auto", "none", "stream"]
Storage = Literal["native", "fp8", "int8"]
Verify = Literal["auto", "always", "off"]

DEFAULT_MODEL = "demo"


@dataclass(frozen=True)
class PipelineConfig:
    """What to load and where.

    model: `demo`, a Hub id, a folder in diffusers' layout, or a BFL transformer file.
    device: auto, cpu, cuda, cuda:N or mps. text_encoders: a folder or Hub id that holds text_encoder/, text_encoder_2/,
    tokenizer/ and tokenizer_2/ for a transformer file that has none beside it.
    offload: auto keeps on the device what the budget allows and streams the rest, none keeps everything there, stream
    keeps as little as possible. memory_budget: bytes of the device's memory to use; None: what is free, on a CPU half.
    storage: fp8 or int8 pack the blocks' matrices at load, with a scale a row: half the memory, a small error.
    compile: each transformer block by torch.compile, which takes a while at the first picture of each size.
    lora: LoRA files that change the model from the start, `PATH` or `PATH:SCALE`. lora_dir: a folder of those that
    requests may name, by the files' stems.
    verify: which files of a known SHA-256 are read and checked first: auto those that were not yet found right or have
    changed since, always all, off none.
    """

    model: str = DEFAULT_MODEL
    device: Device = "auto"
    dtype: Dtype = "auto"
    offload: Offload = "auto"
    text_encoders: str | None = None
    memory_budget: int | None = None
    storage: Storage = "native"
    compile: bool = False
    lora: tuple[str, ...] = ()
    lora_dir: str | None = None
    verify: Verify = "auto"


@dataclass(frozen=True)
class EngineConfig:
    """Bounds on what is accepted, and how the worker is watched. Times are seconds of monotonic clock.

    max_queue: jobs that wait. max_work: pixel-steps of one request, doubled by true CFG. max_job_seconds: from a job's
    first step to its end. max_attempts: worker deaths that one job may see before it fails. ageing: how much of its
    remaining time a job's waiting makes up for (0: shortest first for ever; large: first come, first served).
    hand_over: jobs the worker may hold at once. watchdog_floor_s: the least silence that counts as hung;
    unmeasured_grace_s: the same for work whose speed is not known yet; loading_grace_s: without a loading chunk.
    back_off_s: the first pause before a restart that follows no finished job, doubled up to back_off_max_s.
    max_failed_starts: starts in a row that never reach ready; max_barren_deaths: deaths in a row with no job finished.
    """

    max_queue: int = 32
    max_work: int = 10 * 1024 * 1024 * 50
    max_job_seconds: float = 3600.0
    max_attempts: int = 2
    ageing: float = 0.1
    drain_timeout_s: float = 30.0
    hand_over: int = 8
    watchdog_floor_s: float = 10.0
    unmeasured_grace_s: float = 300.0
    loading_grace_s: float = 600.0
    back_off_s: float = 1.0
    back_off_max_s: float = 30.0
    max_failed_starts: int = 5
    max_barren_deaths: int = 10


ResponseFormat = Literal["url", "b64_json"]


@dataclass(frozen=True)
class ServerConfig:
    """The front's options: what it accepts, from whom, and how it answers.

    public_url: what image URLs start with; None: what the request said. trusted_proxies: addresses or networks whose
    X-Forwarded-* count. allowed_hosts: Host names accepted on a loopback address, beside localhost. cors_origins: web
    pages that may call. api_keys: none: everybody may. rate_limit: requests a minute for each key; None: unlimited.
    output_dir: where pictures lie behind their URLs, for url_ttl_s seconds, within store_quota_bytes; None: the user's
    cache. strict: unknown parameters are an error. strict_model: OpenAI's model names are none of ours.
    content_filter: `module:function`, asked before each generation. log_prompts: the log holds them.
    max_connections: open at the same time.
    """

    host: str = "127.0.0.1"
    port: int = 1234
    public_url: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    rate_limit: int | None = None
    output_dir: Path | None = None
    url_ttl_s: float = 3600.0
    store_quota_bytes: int = 2 * 2**30
    metadata: bool = True
    served_model_names: tuple[str, ...] = ()
    strict_model: bool = False
    strict: bool = False
    default_response_format: ResponseFormat = "url"
    content_filter: str | None = None
    log_prompts: bool = False
    max_pixels: int = 2048 * 2048
    max_input_pixels: int = 4096 * 4096
    max_connections: int = 1024

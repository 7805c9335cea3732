"""The options of `fluxserve serve`: their names, where each is read from, what they become. Starts nothing.

A flag wins over a variable, a variable over `fluxserve.toml`, that over the default. The fields below are the one list:
the flags (`serve.py`), the variables, the keys of the file and the table in the docs are made from it.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, PositiveInt, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fluxserve.cli.options import MODEL_HELP
from fluxserve.config import Dtype, EngineConfig, Offload, PipelineConfig, ResponseFormat, ServerConfig, Storage, Verify
from fluxserve.errors import ConfigError

PREFIX = "FLUXSERVE_"
FILE = Path("fluxserve.toml")

_PIPELINE, _ENGINE, _SERVER = PipelineConfig(), EngineConfig(), ServerConfig()


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _switch(value: object) -> object:
    """Variables say 1 or 0; flags and the file have booleans."""
    return {"1": True, "0": False}.get(value, value) if isinstance(value, str) else value


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        ipaddress.ip_network(network)
    return value


Many = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Switch = Annotated[bool, Field(strict=True), BeforeValidator(_switch)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeSettings(BaseSettings):
    """What `fluxserve serve` can be told. `title` is the group an option is shown in."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid")

    file_content: ClassVar[dict[str, Any]] = {}

    model: str = Field(_PIPELINE.model, title="model", description=MODEL_HELP)
    text_encoders: str | None = Field(
        None, title="model", description="A folder or Hub id with text encoders, for a transformer file without them."
    )
    served_model_name: Many = Field((), title="model", description="A further name for the model.")
    lora: Many = Field((), title="model", description="A LoRA that changes the model, as PATH or PATH:SCALE.")
    lora_dir: str | None = Field(
        None, title="model", description="A folder of LoRAs that requests may name, by the files' stems."
    )
    strict_model: Switch = Field(False, title="model", description="Refuse OpenAI's model names.")
    verify: Verify = Field(
        _PIPELINE.verify,
        title="model",
        description="Check files of known SHA-256 first: auto those that are new or changed, always all, off none.",
    )

    device: str = Field(_PIPELINE.device, title="device", description="auto, cpu, cuda, cuda:N or mps.")
    dtype: Dtype = Field(
        _PIPELINE.dtype, title="device", description="What to compute in: auto, bfloat16, float16 or float32."
    )
    memory_budget: ByteSize | None = Field(
        None,
        gt=0,
        title="device",
        description="How much of the device's memory to use, e.g. 8GiB; all that is free, on a CPU half of it.",
    )
    storage: Storage = Field(
        _PIPELINE.storage, title="device", description="fp8 or int8: half the memory for the blocks, a small error."
    )
    compile: Switch = Field(
        False, title="device", description="Compile the transformer's blocks: slower to the first picture, then faster."
    )
    offload: Offload = Field(
        _PIPELINE.offload,
        title="device",
        description="auto streams what does not fit, none keeps all on the device, stream as little as possible.",
    )

    host: str = Field(_SERVER.host, title="network", description="The address to listen on.")
    port: int = Field(_SERVER.port, ge=0, le=65535, title="network", description="The port to listen on; 0: any free.")
    public_url: str | None = Field(
        None, pattern=r"^https?://[^\s?#]+$", title="network", description="What image URLs start with."
    )
    trusted_proxies: Annotated[Many, AfterValidator(_networks)] = Field(
        (), title="network", description="Proxies whose X-Forwarded-* headers count."
    )
    allowed_host: Many = Field((), title="network", description="A further Host name served on a loopback address.")
    cors_origin: Many = Field((), title="network", description="A web origin whose pages may call.")
    max_connections: PositiveInt = Field(
        _SERVER.max_connections, title="network", description="How many connections may be open."
    )

    api_key: Many = Field(
        (), title="access", repr=False, description="A key clients must send; visible in ps: prefer the variable."
    )
    api_key_file: Path | None = Field(None, title="access", description="A file of further keys, one a line.")
    insecure: Switch = Field(False, title="access", description="Listen beyond this machine without a key.")
    rate_limit: PositiveInt | None = Field(None, title="access", description="Requests a minute for each client.")

    output_dir: Path | None = Field(
        None, title="store", description="Where images lie behind their URLs; by default in the user's cache."
    )
    url_ttl: Seconds = Field(_SERVER.url_ttl_s, title="store", description="How long image URLs live, in seconds.")
    store_quota: ByteSize = Field(
        ByteSize(_SERVER.store_quota_bytes), gt=0, title="store", description="How much the images may take."
    )
    no_metadata: Switch = Field(False, title="store", description="Write no prompt and seed into the images.")

    max_queue: PositiveInt = Field(_ENGINE.max_queue, title="limits", description="How many requests may wait.")
    max_work: PositiveInt = Field(
        _ENGINE.max_work, title="limits", description="The most pixel-steps of one request: n x width x height x steps."
    )
    max_pixels: PositiveInt = Field(_SERVER.max_pixels, title="limits", description="The most pixels of an image.")
    max_input_pixels: PositiveInt = Field(
        _SERVER.max_input_pixels, title="limits", description="The most pixels of an uploaded image."
    )
    max_job_seconds: Seconds = Field(
        _ENGINE.max_job_seconds, title="limits", description="How long one request may run."
    )
    max_attempts: PositiveInt = Field(
        _ENGINE.max_attempts, title="limits", description="Worker deaths after which a request fails."
    )
    ageing: float = Field(
        _ENGINE.ageing, ge=0, le=10, title="limits", description="How much waiting counts against being short."
    )
    drain_timeout: Seconds = Field(
        _ENGINE.drain_timeout_s, title="limits", description="How long open requests may take at the end, in seconds."
    )

    default_response_format: ResponseFormat = Field(
        _SERVER.default_response_format,
        title="answers",
        description="What clients get that do not say: url or b64_json.",
    )
    strict: Switch = Field(False, title="answers", description="Refuse unknown parameters.")
    content_filter: str | None = Field(
        None, title="answers", description="module:function, asked with (prompt, image) before each generation."
    )
    log_prompts: Switch = Field(False, title="answers", description="Write each request's prompt into the log.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then variables, then the file."""
        return init_settings, _Variables(settings_cls), InitSettingsSource(settings_cls, cls.file_content)

    def pipeline_config(self) -> PipelineConfig:
        return PipelineConfig(**self._shared(PipelineConfig))

    def engine_config(self) -> EngineConfig:
        return EngineConfig(**self._shared(EngineConfig), drain_timeout_s=self.drain_timeout)

    def server_config(self) -> ServerConfig:
        """Raises ConfigError if the key file cannot be read."""
        return ServerConfig(
            **self._shared(ServerConfig),
            allowed_hosts=self.allowed_host,
            cors_origins=self.cors_origin,
            api_keys=(*self.api_key, *_read_keys(self.api_key_file)),
            url_ttl_s=self.url_ttl,
            store_quota_bytes=int(self.store_quota),
            metadata=not self.no_metadata,
            served_model_names=self.served_model_name,
        )

    def _shared(self, config: type[PipelineConfig | EngineConfig | ServerConfig]) -> dict[str, Any]:
        """The options that a config has under the same name."""
        return {
            field.name: getattr(self, field.name) for field in fields(config) if field.name in type(self).model_fields
        }


class _Variables(EnvSettingsSource):
    """FLUXSERVE_*, but for the FLUXSERVE_PORT=tcp://... that Kubernetes sets for a service of that name."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        return {name: value for name, value in values.items() if not str(value).startswith("tcp://")}


class UsageError(ConfigError):
    """A flag has a bad value."""


def read_settings(flags: Mapping[str, Any], file: Path | None) -> ServeSettings:
    """The settings that flags, variables and the file amount to. file: None: fluxserve.toml, if there is one.

    Raises:
        UsageError: a bad flag. ConfigError: a bad variable, or a bad or missing file.
    """
    content = _read_file(file)

    class Settings(ServeSettings):
        file_content = content

    try:
        return Settings(**flags)
    except ValidationError as error:
        raise _refusal(error, flags) from None


def default_of(name: str) -> str:
    """An option's default as the help and the docs write it."""
    match ServeSettings.model_fields[name].default:
        case None | ():
            return "none"
        case bool(switch):
            return "on" if switch else "off"
        case ByteSize() as size:
            return size.human_readable(separator=" ").replace(".0 ", " ")
        case float(number):
            return f"{number:g}"
        case value:
            return str(value)


def flag_of(field: str) -> str:
    return "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    return PREFIX + field.upper()


def _refusal(error: ValidationError, flags: Mapping[str, Any]) -> ConfigError:
    """Names every place the option could have come from; never its value, which may be a key."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])
    if field not in ServeSettings.model_fields:
        return ConfigError(f"{FILE} has the unknown key {field!r}; see fluxserve serve --help")
    if field in flags:
        return UsageError(f"{flag_of(field)}: {first['msg']}")
    return ConfigError(f"{variable_of(field)}, or {field} in {FILE}: {first['msg']}")


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None and not FILE.exists():
        return {}
    try:
        content = tomllib.loads((path or FILE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path or FILE} cannot be read: {error}") from error
    return {name.replace("-", "_"): value for name, value in content.items()}


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file cannot be read: {error}") from error

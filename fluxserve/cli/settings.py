"""What the options amount to. A flag wins over a variable, a variable over `fluxserve.toml`, that over the default."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import typer
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from fluxserve.cli.options import PREFIX, Flags, Setting, settings_of
from fluxserve.config import EngineConfig, PipelineConfig, ServerConfig
from fluxserve.errors import ConfigError

FILE = Path("fluxserve.toml")

C = TypeVar("C")


class ServeConfigs(NamedTuple):
    pipeline: PipelineConfig
    server: ServerConfig
    engine: EngineConfig


def read_loading(flags: Flags) -> PipelineConfig:
    """How a command loads a model, by flags and variables.

    Raises:
        typer.BadParameter: a bad flag. ConfigError: a bad variable.
    """
    return _config(PipelineConfig, _read(LoadingSettings, flags, None))


def read_settings(flags: Flags, file: Path | None) -> ServeConfigs:
    """How the server runs, by flags, variables and the file. file: None: fluxserve.toml, if there is one.

    Raises:
        typer.BadParameter: a bad flag. ConfigError: a bad variable, or a bad or missing file.
    """
    settings = _read(ServeSettings, flags, file or _found())
    server = _config(ServerConfig, settings)
    server = replace(server, api_keys=(*server.api_keys, *_read_keys(server.api_key_file)))
    return ServeConfigs(_config(PipelineConfig, settings), server, _config(EngineConfig, settings))


def _found() -> Path | None:
    """The file that lies in the working folder, which whoever wrote there may have put.

    Raises:
        ConfigError: it says what only a file that was named may say.
    """
    if not FILE.exists():
        return None
    for setting in settings_of(PipelineConfig, ServerConfig, EngineConfig):
        if setting.option.sensitive and setting.name in _content(ServeSettings, FILE):
            raise ConfigError(
                f"{FILE} in the working folder sets {setting.name}, which runs code or decides who gets in; "
                f"to trust the file, name it: --config {FILE}"
            )
    return FILE


class _Settings(BaseSettings):
    """Values from one place each: `_read` puts those of all sources together, and knows whence a bad one came."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, enable_decoding=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _class(name: str, *configs: type[Any]) -> type[_Settings]:
    """A class with a field for each setting of the configs."""
    own: dict[str, Any] = {setting.name: (_type(setting), _field(setting)) for setting in settings_of(*configs)}
    return create_model(name, __base__=_Settings, **own)


def _field(setting: Setting) -> Any:
    option = setting.option
    bounds = {"gt": option.gt, "ge": option.ge, "le": option.le}
    given: dict[str, Any] = {name: bound for name, bound in bounds.items() if bound is not None}
    return Field(False if setting.negated else setting.default, **given)


def _type(setting: Setting) -> Any:
    """What pydantic makes of a value, which may be text."""
    kind = _Size if setting.option.size else _KINDS.get(setting.kind, setting.kind)
    kind = Annotated[kind, AfterValidator(setting.option.check)] if setting.option.check else kind
    return kind | None if setting.default is None else kind


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


_Size = Annotated[ByteSize, AfterValidator(int)]
_KINDS = {
    tuple: Annotated[tuple[str, ...], BeforeValidator(_split)],
    float: Annotated[float, Field(allow_inf_nan=False)],
}

LoadingSettings = _class("LoadingSettings", PipelineConfig)
ServeSettings = _class("ServeSettings", PipelineConfig, ServerConfig, EngineConfig)


class _Variables(EnvSettingsSource):
    """FLUXSERVE_*, but for the FLUXSERVE_PORT=tcp://... that Kubernetes sets for a service of that name."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        return {name: value for name, value in values.items() if not str(value).startswith("tcp://")}


class _File(TomlConfigSettingsSource):
    """A settings file, whose keys may have - for _. Its parent passes over pipes and over what is not there."""

    def _read_files(self, files: Any, deep_merge: bool = False) -> dict[str, Any]:
        content = {} if files is None else self._read_file(files)
        return {name.replace("-", "_"): value for name, value in content.items()}


def _read(settings: type[_Settings], flags: Flags, file: Path | None) -> _Settings:
    given = {name: value for name, value in flags.items() if value is not None}
    variables = _Variables(settings)()
    content = _content(settings, file)
    try:
        return settings(**content | variables | given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name, message = str(first["loc"][0]), _WANTED.get(first["type"], first["msg"].removeprefix("Value error, "))
    if name in given:
        raise typer.BadParameter(message, param_hint=f"'--{name.replace('_', '-')}'")
    place = PREFIX + name.upper() if name in variables else f"{name} in {file}"
    raise ConfigError(f"{place}: {message}")  # never the value, which may be a key


def _content(settings: type[_Settings], file: Path | None) -> dict[str, Any]:
    try:
        if file is not None:
            _refuse_writable(file)
        content = _File(settings, file)()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    for name in content.keys() - settings.model_fields.keys():
        raise ConfigError(f"{file} has the unknown key {name!r}; see fluxserve serve --help")
    return content


def _refuse_writable(file: Path) -> None:
    """Raises ConfigError for a file that others may write; pipes and devices are whoever's who named them."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{file} can be written by others than its owner; chmod go-w {file}")
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{file} belongs to another user, who could change it")


_WANTED = {
    "bool_parsing": "true or false is wanted (or 1 or 0, yes or no, on or off)",
    "byte_size": "a size such as 8GiB or 500MB is wanted",
    "byte_size_unit": "a size such as 8GiB or 500MB is wanted",
}
"""By pydantic's types of errors, where its own words tell less."""


def _config(kind: type[C], settings: _Settings) -> C:
    values = {setting: getattr(settings, setting.name) for setting in settings_of(kind)}
    return kind(**{setting.field: not value if setting.negated else value for setting, value in values.items()})


def _read_keys(path: Path | None) -> list[str]:
    """Raises ConfigError for a file that cannot be read, and for one without a key: it would let everybody in."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--api-key-file cannot be read: {error}") from error
    keys = [key for line in lines if (key := re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip())]
    if not keys:
        raise ConfigError(f"--api-key-file {path} holds no key")
    return keys

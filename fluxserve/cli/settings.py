"""What the options amount to. A flag wins over a variable, a variable over `fluxserve.toml`, that over the default."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Sequence
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
from fluxserve.config import EngineConfig, HostingConfig, ModelConfig, PipelineConfig, ServerConfig
from fluxserve.errors import ConfigError

FILE = Path("fluxserve.toml")

C = TypeVar("C")
Table = dict[str, Any]


SEVERAL_IDLE_S = 900.0
"""When one of several models is unloaded, unless it is said."""


SEVERAL_IDLE_S = 900.0
"""When one of several models is unloaded, unless it is said."""
TABLES = "models"
"""The key of the file under which several models stand, a table each."""


class ServeConfigs(NamedTuple):
    """models: the first is the default."""

    models: tuple[ModelConfig, ...]
    server: ServerConfig
    engine: EngineConfig


def read_loading(flags: Flags) -> PipelineConfig:
    """How a command loads a model, by flags and variables.

    Raises:
        typer.BadParameter: a bad flag. ConfigError: a bad variable.
    """
    return _config(PipelineConfig, _read(LoadingSettings, flags, {}, ""))


def read_settings(flags: Flags, file: Path | None, models: Sequence[str] = ()) -> ServeConfigs:
    """How the server runs, by flags, variables and the file. file: None: fluxserve.toml, if there is one.

    models: what to serve; none: what the variable or the file names.

    Raises:
        typer.BadParameter: a bad flag. ConfigError: a bad variable, a bad or missing file, or a model twice.
    """
    file = file or _found()
    content = _content(file)
    tables = _tables(content.pop(TABLES, []), file)
    settings = _read(ServeSettings, flags, content, f" in {file}")
    named = bool(os.environ.get(PREFIX + "MODEL")) or not tables
    chosen = _chosen(models or ([settings.model] if named else []), tables)  # type: ignore[attr-defined]
    return _configs(settings, flags, content, chosen, file)


def read_tables(content: Table, place: str) -> ServeConfigs:
    """From what a file with [[models]] tables would say, and variables. place: what errors call it.

    Raises:
        ConfigError: as `read_settings`.
    """
    content = {str(name).replace("-", "_"): value for name, value in content.items()}
    _check_names(content, place)
    chosen = _chosen([], _tables(content.pop(TABLES), place))
    return _configs(_read(ServeSettings, {}, content, f" in {place}"), {}, content, chosen, place)


def _configs(
    settings: _Settings, flags: Flags, content: Table, chosen: Sequence[Table], file: Path | str | None
) -> ServeConfigs:
    server = _config(ServerConfig, settings)
    server = replace(server, api_keys=(*server.api_keys, *_read_keys(server.api_key_file)))
    read = [_read_model(flags, content, table, file, first=table is chosen[0]) for table in chosen]
    several = len(chosen) > 1
    return ServeConfigs(
        tuple(_model(each, several, server.preload) for each in read), server, _config(EngineConfig, settings)
    )


def _chosen(models: Sequence[str], tables: Sequence[Table]) -> Sequence[Table]:
    """The models that are named, each as its table says where it has one; all tables, if none is named.

    Raises:
        ConfigError: two are the same, and only one has a name of its own.
    """
    by_model = {table["model"]: table for table in reversed(tables)}
    chosen = [by_model.get(model, {"model": model}) for model in models] or tables
    unnamed = [table["model"] for table in chosen if not table.get("served_model_name")]
    if len(unnamed) > len(set(unnamed)):
        twice = next(model for model in unnamed if unnamed.count(model) > 1)
        raise ConfigError(f"{twice} is to be served twice: give each a served_model_name in its [[{TABLES}]] table")
    return chosen


def _read_model(flags: Flags, content: Table, table: Table, file: Path | str | None, first: bool) -> _Settings:
    """What holds for one model. Names that are not said of one are the first one's."""
    own = flags if first else {**flags, "served_model_name": None}
    shared = {name: value for name, value in content.items() if first or name != "served_model_name"}
    place = f" in the [[{TABLES}]] table of {table['model']!r} in {file}"
    return _read(ServeSettings, own, {**shared, **table}, place, said=table.keys() & {"model", "served_model_name"})


def _model(settings: _Settings, several: bool, preload: bool) -> ModelConfig:
    hosting = _config(HostingConfig, settings)
    idle_s = hosting.idle_timeout_s
    if idle_s is None:
        idle_s = SEVERAL_IDLE_S if several else 0
    return ModelConfig(
        _config(PipelineConfig, settings), hosting, idle_timeout_s=idle_s or None, preload=preload or not several
    )


def _tables(found: Any, file: Path | str | None) -> list[Table]:
    """Raises ConfigError for what is no table of a model, and for what is said of the server there."""
    allowed = {setting.name for setting in settings_of(PipelineConfig, HostingConfig)}
    tables = [{str(name).replace("-", "_"): value for name, value in table.items()} for table in _list_of_tables(found)]
    for table in tables:
        for name in table.keys() - allowed:
            raise ConfigError(f"{file} has the unknown key {name!r} in a [[{TABLES}]] table; see docs/options.md")
        if not isinstance(table.get("model"), str):
            raise ConfigError(f"{file} has a [[{TABLES}]] table without a model")
    return tables


def _list_of_tables(found: Any) -> list[dict[str, Any]]:
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise ConfigError(f"{TABLES} must be tables, each under a line [[{TABLES}]]")
    return found


def _found() -> Path | None:
    """The file that lies in the working folder, which whoever wrote there may have put.

    Raises:
        ConfigError: it says what only a file that was named may say.
    """
    if not FILE.exists():
        return None
    content = _content(FILE)
    for setting in settings_of(PipelineConfig, HostingConfig, ServerConfig, EngineConfig):
        if setting.option.sensitive and setting.name in content:
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
    option = setting.option
    kind = _Size if option.size else _Duration if option.duration else _KINDS.get(setting.kind, setting.kind)
    kind = Annotated[kind, AfterValidator(option.check)] if option.check else kind
    return kind | None if setting.default is None else kind


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _seconds(value: object) -> object:
    """15m, 90s, 1h or a number of seconds."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([smh])", value.strip().lower()) if isinstance(value, str) else None
    return value if match is None else float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


_Size = Annotated[ByteSize, AfterValidator(int)]
_Duration = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_seconds)]
_KINDS = {
    tuple: Annotated[tuple[str, ...], BeforeValidator(_split)],
    float: Annotated[float, Field(allow_inf_nan=False)],
}

LoadingSettings = _class("LoadingSettings", PipelineConfig)
ServeSettings = _class("ServeSettings", PipelineConfig, HostingConfig, ServerConfig, EngineConfig)


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


def _read(settings: type[_Settings], flags: Flags, content: Table, place: str, said: Collection[str] = ()) -> _Settings:
    """place: where the content stands. said: what of it no variable changes."""
    given = {name: value for name, value in flags.items() if value is not None}
    variables = {name: value for name, value in _Variables(settings)().items() if name not in said}
    try:
        return settings(**content | variables | given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name, message = str(first["loc"][0]), _WANTED.get(first["type"], first["msg"].removeprefix("Value error, "))
    if name in given:
        raise typer.BadParameter(message, param_hint=f"'--{name.replace('_', '-')}'")
    source = PREFIX + name.upper() if name in variables else name + place
    raise ConfigError(f"{source}: {message}")  # never the value, which may be a key


def _content(file: Path | None) -> Table:
    """What the file says, [[models]] tables among it."""
    try:
        if file is not None:
            _refuse_writable(file)
        content = _File(ServeSettings, file)()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    _check_names(content, file)
    return content


def _check_names(content: Table, file: Path | str | None) -> None:
    for name in content.keys() - ServeSettings.model_fields.keys() - {TABLES}:
        raise ConfigError(f"{file} has the unknown key {name!r}; see fluxserve serve --help")


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

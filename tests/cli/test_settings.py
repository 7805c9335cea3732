"""Where options come from, which value wins, and what a mistake costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer import BadParameter, Typer
from typer.testing import CliRunner

from fluxserve.cli import app, options
from fluxserve.cli.bench import loading_words
from fluxserve.cli.options import settings_of
from fluxserve.cli.settings import read_loading, read_settings
from fluxserve.config import EngineConfig, HostingConfig, ModelConfig, PipelineConfig, ServerConfig
from fluxserve.errors import ConfigError

SETTINGS = settings_of(PipelineConfig, HostingConfig, ServerConfig, EngineConfig)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file in the working folder, no variables."""
    monkeypatch.chdir(tmp_path)
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)


def test_the_defaults_are_those_of_the_configs() -> None:
    assert read_settings({}, None) == ((ModelConfig(PipelineConfig()),), ServerConfig(), EngineConfig())
    assert read_loading({}) == PipelineConfig()


def test_every_option_has_a_name_of_its_own() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("config", [PipelineConfig, HostingConfig, ServerConfig])
def test_all_that_can_be_configured_of_these_is_an_option(config: type) -> None:
    assert {setting.field for setting in settings_of(config)} == {field.name for field in fields(config)}


@pytest.mark.behaviour(65)
def test_a_flag_wins_over_a_variable_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("named.toml").write_text('port = 1\nhost = "::1"\nmax-queue = 3\nstrict = true\n')
    monkeypatch.setenv("FLUXSERVE_PORT", "2")
    monkeypatch.setenv("FLUXSERVE_HOST", "localhost")
    _, server, engine = read_settings({"port": 4}, Path("named.toml"))
    assert (server.port, server.host, engine.max_queue, server.strict) == (4, "localhost", 3, True)
    assert read_settings({}, Path("named.toml")).server.port == 2


def test_another_file_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("port = 77")
    assert read_settings({}, tmp_path / "other.toml").server.port == 77
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        read_settings({}, tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_settings({}, tmp_path)


def test_the_file_may_be_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"echo 'port = 77' > {pipe}"])
    try:
        assert read_settings({}, pipe).server.port == 77
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.fault(66)
@pytest.mark.parametrize(
    "content",
    [
        'content_filter = "mine:check"',
        'content-filter = "mine:check"',
        'host = "0.0.0.0"\ninsecure = true',
        "insecure = true",
        'api_key = ["theirs"]',
        'api-key-file = "keys"',
        'allowed-host = "evil.example"',
        'cors_origin = ["https://evil.example"]',
        'trusted-proxies = ["0.0.0.0/0"]',
        'public_url = "https://evil.example"',
    ],
)
def test_a_file_that_was_found_runs_no_code_and_opens_nothing(monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Not even where a variable or a flag would win over it."""
    Path("fluxserve.toml").write_text(f"max_queue = 3\n{content}\n")
    Path("keys").write_text("theirs")
    name = re.split("[ =]", content)[0].replace("-", "_")
    for flags in ({}, {"content_filter": "other:check", "host": "::1"}):
        with pytest.raises(ConfigError, match=rf"fluxserve\.toml .* sets {name}, .* --config"):
            read_settings(flags, None)
    assert read_settings({}, Path("fluxserve.toml")).engine.max_queue == 3


def test_a_file_that_was_found_may_say_the_rest() -> None:
    settings = [setting for setting in SETTINGS if not setting.option.sensitive]
    assert {"model", "port", "max_queue", "output_dir"} <= {setting.name for setting in settings}
    Path("fluxserve.toml").write_text('port = 77\noutput-dir = "here"\nmodel = "demo"\n')
    assert read_settings({}, None).server.port == 77


@pytest.mark.fault(67)
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o620, 0o602, 0o777])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    for file, named in ((Path("fluxserve.toml"), None), (tmp_path / "other.toml", tmp_path / "other.toml")):
        file.write_text("port = 77")
        file.chmod(mode)
        with pytest.raises(ConfigError, match=r"can be written by others .* chmod go-w"):
            read_settings({}, named)
        file.chmod(0o644)
        assert read_settings({}, named).server.port == 77


@pytest.mark.fault(67)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused() -> None:
    Path("fluxserve.toml").write_text("port = 77")
    os.chown("fluxserve.toml", 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        read_settings({}, None)


@pytest.mark.fault(69)
@pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n", "  # indented"])
def test_a_key_file_without_a_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ConfigError, match="holds no key"):
        read_settings({"api_key_file": tmp_path / "keys"}, None)


def test_lists_switches_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_ALLOWED_HOST", "a.example, b.example")
    monkeypatch.setenv("FLUXSERVE_STRICT", "1")
    monkeypatch.setenv("FLUXSERVE_NO_METADATA", "0")
    monkeypatch.setenv("FLUXSERVE_STORE_QUOTA", "5 MiB")
    config = read_settings({"cors_origin": ["https://a", "https://b"]}, None).server
    assert config.allowed_hosts == ("a.example", "b.example")
    assert config.cors_origins == ("https://a", "https://b")
    assert (config.strict, config.metadata, config.store_quota_bytes) == (True, True, 5 * 2**20)


def test_keys_of_all_sources_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("b\n\nc\n")
    monkeypatch.setenv("FLUXSERVE_API_KEY", "a")
    config = read_settings({"api_key_file": tmp_path / "keys"}, None).server
    assert config.api_keys == ("a", "b", "c")
    assert "'a'" not in repr(config)
    with pytest.raises(ConfigError, match="api-key-file"):
        read_settings({"api_key_file": tmp_path / "none"}, None)


def test_the_port_that_kubernetes_sets_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_PORT", "tcp://10.0.0.1:1234")
    assert read_settings({}, None).server.port == 1234


@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS if setting.kind is bool])
@pytest.mark.parametrize(
    ("on", "off"), [("1", "0"), ("true", "false"), ("True", "FALSE"), ("yes", "no"), ("YES", "No"), ("on", "off")]
)
def test_switches_are_written_as_people_do(monkeypatch: pytest.MonkeyPatch, name: str, on: str, off: str) -> None:
    [setting] = [setting for setting in SETTINGS if setting.name == name]
    for text, switched in ((on, True), (off, False)):
        monkeypatch.setenv(setting.variable, text)
        [model], server, engine = read_settings({}, None)
        configs = (model.pipeline, model.hosting, server, engine)
        [config] = [config for config in configs if hasattr(config, setting.field)]
        assert getattr(config, setting.field) is (switched != setting.negated)


def test_other_commands_read_variables_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fluxserve.toml").write_text('port = "x"\ndevice = "cuda"\n')
    monkeypatch.setenv("FLUXSERVE_PORT", "many")
    monkeypatch.setenv("FLUXSERVE_MEMORY_BUDGET", "8GiB")
    monkeypatch.setenv("FLUXSERVE_LORA", "a.safetensors, b.safetensors:0.5")
    config = read_loading({"dtype": "float32", "lora": None})
    loras = ("a.safetensors", "b.safetensors:0.5")
    assert config == PipelineConfig(dtype="float32", memory_budget=8 * 2**30, loras=loras)


def test_what_is_told_to_another_command_is_what_was_read() -> None:
    config = PipelineConfig(
        "schnell",
        text_encoders="folder",
        loras=("a,b", "[c]:0.5"),
        lora_dir="loras",
        max_input_images=2,
        variant="kontext",
        redux="redux",
        verify="off",
        device="cpu",
        dtype="float32",
        memory_budget=12345678901,
        storage="int8",
        compute="int8",
        solver="dpmpp2m",
        step_cache=0.25,
        compile=True,
        offload="stream",
    )
    assert not any(getattr(config, field.name) == field.default for field in fields(PipelineConfig))
    read: list[PipelineConfig] = []

    @options.spread
    def command(*, model: options.ModelArgument = None, loading: options.LoadingFlags) -> None:
        read.append(read_loading({"model": model, **loading}))

    told = Typer()
    told.command()(command)
    result = CliRunner().invoke(told, [config.model, *loading_words(config)])
    assert (result.exit_code, read) == (0, [config])


@pytest.mark.behaviour(65)
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "many"),
        ("PORT", "70000"),
        ("STRICT", "perhaps"),
        ("INSECURE", "2"),
        ("MEMORY_BUDGET", "0"),
        ("AGEING", "11"),
        ("OFFLOAD", "NONE"),
        ("MAX_QUEUE", "0"),
        ("DTYPE", "int4"),
        ("PUBLIC_URL", "pictures.example"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,proxy"),
        ("URL_TTL", "nan"),
        ("STORE_QUOTA", "much"),
    ],
)
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"FLUXSERVE_{variable}", value)
    with pytest.raises(ConfigError, match=f"^FLUXSERVE_{variable}: "):
        read_settings({}, None)


@pytest.mark.behaviour(65)
def test_a_bad_key_is_named_with_its_file(tmp_path: Path) -> None:
    for content in ("max-queue = 0", "max_queue = 0"):
        (tmp_path / "other.toml").write_text(content)
        with pytest.raises(ConfigError, match=r"^max_queue in \S+/other\.toml: .* greater than 0"):
            read_settings({}, tmp_path / "other.toml")


@pytest.mark.behaviour(65)
def test_a_bad_flag_is_a_usage_error() -> None:
    with pytest.raises(BadParameter) as error:
        read_settings({"max_queue": 3, "port": 99_999}, None)
    assert "'--port': Input should be less than or equal to 65535" in error.value.format_message()


def test_a_bad_value_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("named.toml").write_text('api_key = ["canary", 5]')
    with pytest.raises(ConfigError) as error:
        read_settings({}, Path("named.toml"))
    assert "canary" not in str(error.value)


@pytest.mark.fault(42, 66, 108)
@pytest.mark.behaviour(65)
@pytest.mark.parametrize(
    ("content", "flags", "code"),
    [
        ("colour = 1", [], 78),
        ("port = [", [], 78),
        ('max_queue = "x"', [], 78),
        ('content_filter = "os:getcwd"', [], 78),
        ('host = "0.0.0.0"\ninsecure = true', [], 78),
        ("", ["--port", "x"], 2),
        ("", ["--port", "-5"], 2),
        ("", ["--memory-budget", "much"], 2),
        ("", ["--offload", "all"], 2),
        ("", ["--colour"], 2),
        ("", ["--content-filter", "nowhere:f"], 78),
        ("", ["--output-dir", "/proc/nowhere"], 78),
        ("", ["--host", "192.0.2.1", "--insecure"], 78),
        ("", ["--compute", "int4"], 2),
        ("", ["--compute", "fp8", "--device", "cpu"], 78),
        ("", ["--compute", "int8", "--storage", "fp8"], 78),
    ],
)
def test_exit_codes(content: str, flags: list[str], code: int) -> None:
    Path("fluxserve.toml").write_text(content)
    command = [sys.executable, "-m", "fluxserve", "serve", "--port", "0", *flags]
    own_cache = {**os.environ, "XDG_CACHE_HOME": str(Path.cwd())}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=own_cache)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr


@pytest.mark.behaviour(65)
def test_the_help_names_every_option() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"})
    for setting in SETTINGS:
        [line] = [line for line in result.output.splitlines() if f"({setting.variable}," in line]
        assert setting.name == "model" or re.search(rf"{setting.flag}\s", line)
        assert setting.help in line


@pytest.mark.parametrize("command", ["generate", "bench", "doctor"])
def test_the_help_of_loading_is_the_same_everywhere(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "400", "TERM": "dumb", "NO_COLOR": "1"})
    for setting in settings_of(PipelineConfig):
        assert setting.help in result.output
        assert setting.flag in result.output or setting.name == "model"


TABLES = """
dtype = "float32"
served-model-name = ["house"]

[[models]]
model = "klein"
device = "cuda:0,cuda:1"
idle-timeout = "90s"

[[models]]
model = "schnell"
workers = 2
served_model_name = ["fast"]
idle-timeout = 0
"""


@pytest.mark.behaviour(160)
def test_several_models_each_with_its_own_options(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(TABLES)
    klein, schnell = read_settings({}, file).models
    assert [pipeline.device for pipeline in klein.pipelines] == ["cuda:0", "cuda:1"]
    assert [pipeline.device for pipeline in schnell.pipelines] == ["auto", "auto"]
    assert (klein.idle_timeout_s, schnell.idle_timeout_s) == (90, None)
    assert (klein.hosting.served_model_names, schnell.hosting.served_model_names) == (("house",), ("fast",))
    assert {model.pipeline.dtype for model in (klein, schnell)} == {"float32"}
    assert not klein.preload
    named = read_settings({"idle_timeout": "1h", "preload": True}, file, ["demo", "schnell"]).models
    assert [model.pipeline.model for model in named] == ["demo", "schnell"]
    assert [model.idle_timeout_s for model in named] == [3600, 3600], "a flag wins over the table"
    assert (named[1].hosting.workers, named[1].preload) == (2, True)


def test_one_model_stays_and_several_leave_when_they_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [model.idle_timeout_s for model in read_settings({}, None, ["demo"]).models] == [None]
    assert [model.idle_timeout_s for model in read_settings({}, None, ["demo", "klein"]).models] == [900, 900]
    monkeypatch.setenv("FLUXSERVE_IDLE_TIMEOUT", "1.5m")
    assert [model.idle_timeout_s for model in read_settings({}, None).models] == [90]
    monkeypatch.setenv("FLUXSERVE_MODEL", "schnell")
    assert [model.label for model in read_settings({}, None).models] == ["schnell"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('models = "klein"', "must be tables"),
        ("[[models]]\ndevice = 'cpu'", "without a model"),
        ("[[models]]\nmodel = 'a'\nport = 3", "unknown key 'port' in a"),
        ("[[models]]\nmodel = 'a'\nworkers = 0", r"^workers in the \[\[models\]\] table of 'a' in "),
        ("[[models]]\nmodel = 'a'\nidle-timeout = 'soon'", "^idle_timeout in the"),
        ("[[models]]\nmodel = 'a'\n[[models]]\nmodel = 'a'", "a is to be served twice"),
    ],
)
def test_mistakes_in_tables_are_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "models.toml").write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_settings({}, tmp_path / "models.toml")

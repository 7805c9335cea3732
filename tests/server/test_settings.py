"""Where the options of `fluxserve serve` come from, which value wins, and what a mistake costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluxserve.cli import app
from fluxserve.cli.settings import ServeSettings, UsageError, default_of, flag_of, read_settings, variable_of
from fluxserve.config import EngineConfig, PipelineConfig, ServerConfig
from fluxserve.errors import ConfigError


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file in the working folder, no variables."""
    monkeypatch.chdir(tmp_path)
    for name in ServeSettings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)


def test_the_defaults_are_those_of_the_configs() -> None:
    settings = read_settings({}, None)
    assert settings.pipeline_config() == PipelineConfig()
    assert settings.engine_config() == EngineConfig()
    assert settings.server_config() == ServerConfig()


@pytest.mark.behaviour(65)
def test_a_flag_wins_over_a_variable_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fluxserve.toml").write_text('port = 1\nhost = "::1"\nmax-queue = 3\nstrict = true\n')
    monkeypatch.setenv("FLUXSERVE_PORT", "2")
    monkeypatch.setenv("FLUXSERVE_HOST", "localhost")
    settings = read_settings({"port": 4}, None)
    assert (settings.port, settings.host, settings.max_queue, settings.strict) == (4, "localhost", 3, True)
    assert read_settings({}, None).port == 2


def test_another_file_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("port = 77")
    assert read_settings({}, tmp_path / "other.toml").port == 77
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        read_settings({}, tmp_path / "missing.toml")


def test_lists_switches_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_ALLOWED_HOST", "a.example, b.example")
    monkeypatch.setenv("FLUXSERVE_STRICT", "1")
    monkeypatch.setenv("FLUXSERVE_NO_METADATA", "0")
    monkeypatch.setenv("FLUXSERVE_STORE_QUOTA", "5 MiB")
    config = read_settings({"cors_origin": ["https://a", "https://b"]}, None).server_config()
    assert config.allowed_hosts == ("a.example", "b.example")
    assert config.cors_origins == ("https://a", "https://b")
    assert (config.strict, config.metadata, config.store_quota_bytes) == (True, True, 5 * 2**20)


def test_keys_of_all_sources_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("b\n\nc\n")
    monkeypatch.setenv("FLUXSERVE_API_KEY", "a")
    config = read_settings({"api_key_file": tmp_path / "keys"}, None).server_config()
    assert config.api_keys == ("a", "b", "c")
    assert "'a'" not in repr(config)
    with pytest.raises(ConfigError, match="api-key-file"):
        read_settings({"api_key_file": tmp_path / "none"}, None).server_config()


def test_the_port_that_kubernetes_sets_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_PORT", "tcp://10.0.0.1:1234")
    assert read_settings({}, None).port == 1234


@pytest.mark.behaviour(65)
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "many"),
        ("PORT", "70000"),
        ("STRICT", "yes"),
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
    with pytest.raises(ConfigError, match=f"FLUXSERVE_{variable}"):
        read_settings({}, None)


@pytest.mark.behaviour(65)
def test_a_bad_flag_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--port"):
        read_settings({"port": 99_999}, None)


def test_a_bad_value_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("fluxserve.toml").write_text('api_key = ["canary", 5]')
    with pytest.raises(ConfigError) as error:
        read_settings({}, None)
    assert "canary" not in str(error.value)


@pytest.mark.fault(42)
@pytest.mark.behaviour(65)
@pytest.mark.parametrize(
    ("content", "flags", "code"),
    [
        ("colour = 1", [], 78),
        ("port = [", [], 78),
        ('max_queue = "x"', [], 78),
        ("", ["--port", "x"], 2),
        ("", ["--port", "-5"], 2),
        ("", ["--colour"], 2),
        ("", ["--content-filter", "nowhere:f"], 78),
        ("", ["--output-dir", "/proc/nowhere"], 78),
        ("", ["--host", "192.0.2.1", "--insecure"], 78),
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
    for name, field in ServeSettings.model_fields.items():
        [line] = [line for line in result.output.splitlines() if f"({variable_of(name)}," in line]
        assert name == "model" or re.search(rf"{flag_of(name)}\s", line)
        assert str(field.description) in line
        assert f"default {default_of(name)})" in line

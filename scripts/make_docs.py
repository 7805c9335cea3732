"""Writes the pages of docs/ that are made from code and tests: see PAGES. Tests hold them equal."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fluxserve.cli.options import Setting, settings_of  # noqa: E402
from fluxserve.config import EngineConfig, HostingConfig, PipelineConfig, ServerConfig  # noqa: E402
from scripts.models_page import models_page  # noqa: E402
from scripts.reliability_page import reliability_page  # noqa: E402
from tests.behaviours import BEHAVIOURS  # noqa: E402
from tests.clients.retry_after import CLIENTS, RETRIES  # noqa: E402
from tests.interop_files import BESIDES, COMFYUI_SOURCE, LORA_FILES  # noqa: E402


def options() -> str:
    """docs/options.md"""
    lines = ["# Options of `fluxserve serve [MODEL]...`", "", *_PRECEDENCE, ""]
    loading = settings_of(PipelineConfig)
    settings = settings_of(PipelineConfig, HostingConfig, ServerConfig, EngineConfig)
    for group, members in groupby(settings, key=lambda setting: setting.option.group):
        python = any(setting.option.group == group for setting in loading)
        names = ["option", "variable", *(["in Python"] if python else []), "default", "meaning"]
        lines += [f"## {group.capitalize()}", "", _row(names), f"|{'---|' * len(names)}"]
        lines += [_row(_cells(setting, python)) for setting in members]
        lines.append("")
    return "\n".join(lines)


def _cells(setting: Setting, python: bool) -> list[str]:
    flag = "MODEL" if setting.name == "model" else f"`{setting.flag}`"
    field = [f"`{setting.field}`"] if python else []
    return [flag, f"`{setting.variable}`", *field, setting.default_text, setting.meaning]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


_SENSITIVE = ", ".join(f"`{setting.name}`" for setting in settings_of(ServerConfig) if setting.option.sensitive)
_PRECEDENCE = [
    "A flag wins over a variable, a variable over `fluxserve.toml` in the working folder (or the file named with",
    "`--config`), that over the default. The file's keys are the options' names, with `-` or `_`. In a variable,",
    "switches are true or false (or 1 or 0, yes or no, on or off), and what is repeatable is a comma list. The keys of",
    "`--api-key-file` come on top of those of `--api-key`.",
    "",
    "A `fluxserve.toml` that was found, not named, may not set what runs code or decides who gets in:",
    f"{_SENSITIVE}. A settings file that its group or others can write is refused.",
    "",
    "Several models are named one after the other, or stand in the file, each in a table of its own with the options",
    "under *Model*, *Device* and *Hosting* (but for `preload`); a model that is named is served as its table says:",
    "",
    "```toml",
    "[[models]]",
    'model = "klein"',
    'device = "cuda:0"',
    'idle-timeout = "15m"',
    "",
    "[[models]]",
    'model = "schnell"',
    'device = "cuda:1"',
    'served-model-name = ["fast"]',
    "```",
    "",
    "The options under *Model* and *Device* are also those of `fluxserve generate` (where MODEL is `--model`), `bench`",
    "and `doctor`, which read variables but no file, and the parameters of `FluxPipeline.from_pretrained`.",
]


def conformance() -> str:
    """docs/conformance.md"""
    shown = claims("behaviour")
    lines = ["# What clients may rely on, and the tests that show it", ""]
    for group, behaviours in BEHAVIOURS.items():
        lines += [f"## {group}", "", "| | behaviour | shown by |", "|---|---|---|"]
        lines += [
            f"| {number} | {text} | {'<br>'.join(shown.get(number, ()))} |" for number, text in behaviours.items()
        ]
        lines.append("")
    return "\n".join(lines)


def reliability() -> str:
    """docs/reliability.md"""
    return reliability_page(claims("fault"))


def interop_files() -> str:
    """docs/interop_files.md"""
    lines = [
        "# LoRA files in other programs and here",
        "",
        *_INTEROP,
        "",
        _row(["file", "diffusers", "peft", "ComfyUI (read)", "fluxserve"]),
        "|---|---|---|---|---|",
    ]
    for name, seen in LORA_FILES.items():
        lines.append(_row([name, seen.diffusers, seen.peft, seen.comfyui, seen.fluxserve]))
    lines += ["", "Besides, in diffusers:", "", *(f"- {told}" for told in BESIDES.values())]
    return "\n".join(lines) + "\n"


_INTEROP = [
    f"What diffusers {version('diffusers')} (`FluxPipeline.load_lora_weights`), peft {version('peft')}",
    "(`PeftModel.from_pretrained`, which wants an `adapter_config.json`) and fluxserve take of a file, and at which",
    "strength. alpha is 2 and the rank 4 in each file that has an alpha, so 0.5 is the strength it was trained at, 1",
    "with `use_rslora`; files without one act at 1, as does LoKr of whole factors. Each row is a test that writes the",
    "file and runs the three (`tests/weights/lora/test_interop.py`). ComfyUI is not run; its column is read in",
    f"{COMFYUI_SOURCE}.",
    "Folders of peft, and what diffusers and lycoris save, act as in these, patterns and mixed ranks included",
    "(`test_strength.py` and `test_lycoris.py` beside it).",
]


def interop_retries() -> str:
    """docs/interop_retries.md"""
    heads = [f"{language}, {' and '.join(versions)}" for language, versions in CLIENTS.values()]
    lines = ["# When OpenAI's clients come back", "", *_RETRIES, "", _row(["the refusal's headers", *heads])]
    lines.append(f"|{'---|' * (len(heads) + 1)}")
    lines += [_row([name, *(getattr(seen, column) for column in CLIENTS)]) for name, seen in RETRIES.items()]
    return "\n".join(lines) + "\n"


_RETRIES = [
    "How long openai-python and openai-node wait before the second try after a 429 with these headers. ½ s is their",
    "own first pause (0.375 to 0.5 s). Each column is a test that runs the client against a socket and notes its pause",
    "(`tests/clients/test_retry_after.py`). fluxserve tells whole seconds from 1 to 60, and neither of the other",
    "headers: what all of them honour.",
]


def claims(mark: str) -> dict[int, list[str]]:
    """The tests by each number that they are marked with, in the order of files and lines."""
    shown = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for number in sorted(set(_numbers(node, mark))):
                    shown[number].append(f"`{path.relative_to(ROOT / 'tests')}::{node.name}`")
    return dict(shown)


def _numbers(test: ast.FunctionDef | ast.AsyncFunctionDef, mark: str) -> Iterator[int]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{mark}":
            yield from (int(ast.literal_eval(argument)) for argument in decorator.args)


PAGES = {
    "options.md": options,
    "conformance.md": conformance,
    "reliability.md": reliability,
    "interop_files.md": interop_files,
    "interop_retries.md": interop_retries,
    "models.md": models_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page())

"""The two halves do without each other: what is imported by which, seen in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

WEB_PACKAGES = ("fastapi", "starlette", "uvicorn", "typer", "pydantic", "pydantic_settings", "prometheus_client")
TORCH_PACKAGES = ("torch", "transformers", "safetensors", "numpy")

BLOCKED_GENERATION = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"{{name}} is not to be had", name=name)

sys.meta_path.insert(0, Blocked())
try:
    import fastapi
    raise SystemExit("the block does not work")
except ModuleNotFoundError:
    pass
import fluxserve.worker
from fluxserve import FluxPipeline
image = FluxPipeline.from_pretrained("demo-untrained", device="cpu").generate("a cat", seed=1, width=64, height=64)[0]
assert image.data.startswith(b"\\x89PNG")
"""


def run(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_torch_half_generates_without_the_web_packages() -> None:
    run(BLOCKED_GENERATION.format(packages=WEB_PACKAGES))


def test_the_web_half_imports_no_torch() -> None:
    modules = loaded_after("import fluxserve.server.app, fluxserve.engine, fluxserve.cli")
    assert "fastapi" in modules
    assert not modules & set(TORCH_PACKAGES)


def test_importing_the_package_loads_neither_half() -> None:
    modules = loaded_after("import fluxserve")
    assert not modules & {*TORCH_PACKAGES, *WEB_PACKAGES}

"""`fluxserve bench`: how long each stage takes here, and what HTTP adds. Prints JSON. Torch is imported when called."""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fluxserve import __version__
from fluxserve.cli import options
from fluxserve.cli.failures import failures_to_exit_codes
from fluxserve.cli.generate import parse_size
from fluxserve.cli.loading import load_with_progress
from fluxserve.cli.settings import read_loading
from fluxserve.completion import complete_request
from fluxserve.config import PipelineConfig
from fluxserve.errors import WorkerUnavailable
from fluxserve.request import GenerationRequest

if TYPE_CHECKING:
    from fluxserve.pipeline.pipeline import FluxPipeline

START_TIMEOUT_S = 600


@options.spread
def bench(
    *,
    model: options.ModelArgument = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; the model's own if left out.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; the model's own if left out.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Counted runs of each part, after one that is not.")] = 5,
    loading: options.LoadingFlags,
) -> None:
    """Time text, step, decode, encode and the overhead of HTTP."""
    with failures_to_exit_codes():
        width, height = parse_size(size)
        config = read_loading({"model": model, **loading})
        pipeline, request = _load(config, width, height, steps)
        report = {
            "machine": _machine(),
            "model": {"id": pipeline.card.id, "device": pipeline.card.device, "dtype": pipeline.card.dtype},
            "request": {"size": f"{request.width}x{request.height}", "steps": request.num_inference_steps},
            "stages_ms": _stages(pipeline, request, repeats),
        }
        del pipeline  # two copies of a large model would not fit
        report["http_ms"] = _http(config, request, repeats)
        print(json.dumps(report, indent=2))


def _load(
    config: PipelineConfig, width: int | None, height: int | None, steps: int | None
) -> tuple[FluxPipeline, GenerationRequest]:
    pipeline = load_with_progress(config)
    request = complete_request(
        pipeline.card, "A lighthouse at dusk", width=width, height=height, num_inference_steps=steps, seed=0
    )
    return pipeline, request


def _machine() -> dict[str, Any]:
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": torch.cpu.get_capabilities().get("cpu_name"),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fluxserve": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _stages(pipeline: FluxPipeline, request: GenerationRequest, repeats: int) -> dict[str, Any]:
    """Each stage by itself; every text run has a prompt that is not cached."""
    prompts = iter(range(repeats + 1))
    samples = pipeline.begin(request)
    sample = samples[0]
    started = sample.latents

    def step() -> None:
        sample.step, sample.latents = 0, started
        pipeline.step([sample])

    text = _timed(lambda: pipeline.begin(replace(request, prompt=f"{request.prompt} {next(prompts)}")), repeats)
    step_ms = _timed(step, repeats)
    pixels = pipeline.decode(sample)
    decode = _timed(lambda: pipeline.decode(sample), repeats)
    encode = _timed(lambda: pipeline.encode(pixels, sample), repeats)
    return {"text": text, "step": step_ms, "decode": decode, "encode": encode}


def _timed(action: Callable[[], object], repeats: int) -> dict[str, Any]:
    """One run that is not counted, then `repeats` that are: their median and all of them, in milliseconds."""
    action()
    runs = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        runs.append(round((time.perf_counter() - started) * 1000, 3))
    return {"median": statistics.median(runs), "runs": runs}


def _http(config: PipelineConfig, request: GenerationRequest, repeats: int) -> dict[str, Any]:
    """Wall time of whole requests to a server of its own, and what of it is neither denoising nor decoding."""
    body = {
        "prompt": request.prompt,
        "size": f"{request.width}x{request.height}",
        "num_inference_steps": request.num_inference_steps,
        "seed": request.seeds[0],
        "response_format": "b64_json",
    }
    walls, overheads = [], []
    with _server(config) as base:
        for i in range(repeats + 1):
            started = time.perf_counter()
            answer = _post(f"{base}/v1/images/generations", body)
            wall = (time.perf_counter() - started) * 1000
            if i > 0:  # the first encodes the prompt; the others find it cached
                walls.append(round(wall, 3))
                overheads.append(round(wall - answer["timings"]["denoise_ms"] - answer["timings"]["decode_ms"], 3))
    return {
        "wall": {"median": statistics.median(walls), "runs": walls},
        "overhead": {"median": statistics.median(overheads), "runs": overheads},
    }


@contextmanager
def _server(config: PipelineConfig) -> Iterator[str]:
    """A server process on a free port of loopback; yields its base URL once it is ready.

    It is told all by flags: settings of another server around here, such as its key, are not for this one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "fluxserve", "serve", config.model, "--port", str(port), *loading_words(config)]
    command += ["--config", os.devnull]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(options.PREFIX)}
    with tempfile.TemporaryDirectory() as pictures:
        command += ["--output-dir", pictures]  # nothing of them is to stay
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_ready(process, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def loading_words(config: PipelineConfig) -> Iterator[str]:
    """What to tell `fluxserve serve` so that it loads as `config` says, beside the model."""
    for setting in options.settings_of(PipelineConfig):
        value = getattr(config, setting.field)
        if setting.name == "model" or value == setting.default:
            continue
        if isinstance(value, tuple):
            yield from (word for item in value for word in (setting.flag, item))
        else:
            yield from [setting.flag] if value is True else [setting.flag, str(value)]


def _wait_ready(process: subprocess.Popen[bytes], base: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{base}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise WorkerUnavailable(f"the server to be timed did not become ready (exit code {process.poll()})")


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return dict(json.load(answer))

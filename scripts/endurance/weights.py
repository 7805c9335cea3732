"""R15: damaged weight files, given to a real server: refused by name with exit code 65, and nothing in them runs."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fluxserve.weights.synthetic.write import write_model
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from tests.weights.stored_files import flip_a_bit, rewrite, write_sums

REFUSED = 65


def _file(folder: Path, part: str = "transformer") -> Path:
    return next((folder / part).glob("*.safetensors"))


def _cut(folder: Path) -> None:
    path = _file(folder)
    path.write_bytes(path.read_bytes()[:-1000])


def _junk(folder: Path) -> None:
    _file(folder).write_bytes(b"<html>rate limited</html>" * 100)


def _header(folder: Path) -> None:
    raw = bytearray(_file(folder).read_bytes())
    raw[9] ^= 0xFF
    _file(folder).write_bytes(bytes(raw))


def _flip(folder: Path) -> None:
    """In the data, which nothing but a hash tells of."""
    flip_a_bit(_file(write_sums(folder)))


def _shape(folder: Path) -> None:
    rewrite(_file(folder), lambda tensors: tensors.update({"x_embedder.bias": torch.ones(65)}))


def _key(folder: Path) -> None:
    rewrite(_file(folder), lambda tensors: tensors.pop("x_embedder.bias"))


def _dtype(folder: Path) -> None:
    rewrite(_file(folder), lambda tensors: tensors.update({"x_embedder.bias": torch.ones(64, dtype=torch.int32)}))


class _Canary:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def _pickle(folder: Path) -> None:
    _file(folder).write_bytes(pickle.dumps(_Canary(folder / "ran")))


def _torch_pickle(folder: Path) -> None:
    torch.save({"a": _Canary(folder / "ran")}, _file(folder))


def _pickle_beside(folder: Path) -> None:
    path = _file(folder, "vae")
    torch.save({"a": _Canary(folder / "ran")}, path.with_suffix(".bin"))
    path.unlink()


def _shard(folder: Path) -> None:
    path = _file(folder)
    index = {"metadata": {}, "weight_map": dict.fromkeys(["x_embedder.bias"], "missing-00002-of-00002.safetensors")}
    path.with_name(path.name + ".index.json").write_text(json.dumps(index))
    path.unlink()


def _loop(folder: Path) -> None:
    path = _file(folder)
    path.unlink()
    path.symlink_to(path)


def _half(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")


DAMAGES = (
    _cut,
    _junk,
    _header,
    _flip,
    _shape,
    _key,
    _dtype,
    _pickle,
    _torch_pickle,
    _pickle_beside,
    _shard,
    _loop,
    _half,
)


async def weights(scale: Scale) -> list[Goal]:
    """The whole part; each damage takes one start of a server."""
    slowest, wrong = 0.0, []
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        write_model(whole, "tiny", "schnell", "diffusers", seed=1)
        damages = DAMAGES[: scale.of(len(DAMAGES))]
        for damage in damages:
            folder = Path(name) / "model"
            shutil.copytree(whole, folder)
            damage(folder)
            seconds, problem = _start(folder)
            slowest = max(slowest, seconds)
            wrong += [f"{damage.__name__[1:]}: {problem}"] if problem else []
            shutil.rmtree(folder)
    return [
        none_of("R15", "damages of weights that are not refused by name", wrong, len(damages)),
        at_most("R15", "the slowest refusal", slowest, 10, "s"),
    ]


def _start(folder: Path) -> tuple[float, str]:
    """How long the server took to refuse, and what was wrong with that."""
    command = [sys.executable, "-m", "fluxserve", "serve", str(folder), "--port", "0"]
    command += ["--output-dir", str(folder / "pictures")]
    began = time.monotonic()
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return 0.0, "served"
    problems = [
        f"exit {result.returncode}" if result.returncode != REFUSED else "",
        "not named" if str(folder) not in result.stderr else "",
        "the canary ran" if (folder / "ran").exists() else "",
    ]
    return time.monotonic() - began, ", ".join(filter(None, problems))

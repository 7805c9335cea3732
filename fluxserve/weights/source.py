"""What the word MODEL means: a demo, a folder, a file or a Hub id; and where it then lies on disk. Reads no weights."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import ConfigError
from fluxserve.models import registry
from fluxserve.weights.files.weight_sets import set_of
from fluxserve.weights.hub import fetch as hub
from fluxserve.weights.hub.ungated import composed_folder
from fluxserve.weights.synthetic.write import cached_model

DEMO = "demo"
DEMO_UNTRAINED = "demo-untrained"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+\.(safetensors|gguf))?", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A model on disk. path: a folder or a weight file."""

    id: str
    path: Path


def locate(model: str, progress: hub.ByteProgress, subfolders: tuple[str, ...] | None = None) -> Source:
    """Where `model` lies, once it is there; what exists on disk goes before the Hub.

    model: `demo`, `demo-untrained`, a published variant, a path, `owner/name` on the Hub, or `owner/name/file` there.
    subfolders: what is needed of a repository in diffusers' layout; None: all.

    Raises:
        SourceError: the Hub repository is gated, missing or unreachable.
        CheckpointError: an index of shards beside the file is damaged.
        ConfigError: `model` is none of these, or the demo cannot be written.
    """
    if model in (DEMO, DEMO_UNTRAINED):
        return _demo(model)
    path = Path(os.path.expanduser(model))
    if model and os.path.lexists(path):
        return Source(path.resolve().name if path.is_dir() else Path(set_of(path).name).stem, path)
    repo_id, file = hub_name(model)
    if file is not None:
        return Source(Path(file).stem, hub.fetch_file(repo_id, file, progress))
    composed = composed_folder(repo_id)
    if composed is not None:
        return Source(repo_id, composed)
    return Source(repo_id, hub.fetch_folder(repo_id, subfolders or hub.model_folders(), progress))


def hub_name(model: str) -> tuple[str, str | None]:
    """The repository that `model` names on the Hub, and the file in it where it names one.

    Raises:
        ConfigError: it is neither a short name nor a Hub id.
    """
    short_names = registry.short_names()
    name = short_names.get(model, model)
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError(
            f"no model named {model!r}: no such file or folder; allowed are {DEMO}, {DEMO_UNTRAINED}, "
            f"{', '.join(short_names)}, a path, or a Hub id such as {next(iter(short_names.values()))}"
        )
    owner, repository, *file = name.split("/", 2)
    return f"{owner}/{repository}", file[0] if file else None


def _demo(name: str) -> Source:
    trained = Path(__file__).parents[1] / "demo" / "model"
    if name == DEMO and trained.is_dir():
        return Source(DEMO, trained)
    try:
        return Source(DEMO_UNTRAINED, cached_model(hub.assets_folder(), DEMO_UNTRAINED))
    except OSError as error:
        raise ConfigError(f"{DEMO_UNTRAINED} cannot be written: {error}; set HF_HOME to a writable folder") from error

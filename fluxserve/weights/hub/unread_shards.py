"""Shards of a repository that hold nothing of what its family reads: they need not be fetched.

Told from model_index.json and a network's index of shards, which are small and fetched for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from huggingface_hub import DryRunFileInfo, hf_hub_download

from fluxserve.models import registry
from fluxserve.models.family import Part
from fluxserve.weights.files.json_file import read_json
from fluxserve.weights.files.safetensors_file import shards_of

log = logging.getLogger(__name__)

INDEX = "model_index.json"
_SHARD_INDEX = ".safetensors.index.json"


def without_unread(repo_id: str, files: Sequence[DryRunFileInfo]) -> list[DryRunFileInfo]:
    """The files without the shards of which no tensor is read.

    Raises:
        CheckpointError: an index is damaged.
        huggingface_hub's errors: it cannot be fetched.
    """
    indexes = [file for file in files if file.filename.endswith(_SHARD_INDEX) and _may_be_cut(_folder(file))]
    if not indexes:
        return list(files)
    parts = _parts_of(repo_id, files)
    unread = {name for file in indexes for name in _unread(repo_id, file, parts)}
    spared = sum(file.file_size or 0 for file in files if file.filename in unread)
    if unread:
        log.info("%s: %s (%d bytes) are not read and not fetched", repo_id, ", ".join(sorted(unread)), spared)
    return [file for file in files if file.filename not in unread]


def _may_be_cut(folder: str) -> bool:
    return any(part.folder == folder and part.reads is not None for part in registry.parts())


def _parts_of(repo_id: str, files: Sequence[DryRunFileInfo]) -> tuple[Part, ...]:
    """Of the family whose pipeline the repository names."""
    described = next((file for file in files if file.filename == INDEX), None)
    if described is None:
        return ()
    family = registry.family_of_pipeline(str(read_json(_fetched(repo_id, described)).get("_class_name")))
    return family.parts if family else ()


def _unread(repo_id: str, index: DryRunFileInfo, parts: Sequence[Part]) -> list[str]:
    reads = next((part.reads for part in parts if part.folder == _folder(index)), None)
    if reads is None:
        return []
    shards = shards_of(_fetched(repo_id, index))
    return [f"{_folder(index)}/{name}" for name, keys in shards.items() if not any(map(reads, keys))]


def _folder(file: DryRunFileInfo) -> str:
    return str(PurePosixPath(file.filename).parent)


def _fetched(repo_id: str, file: DryRunFileInfo) -> Path:
    return Path(hf_hub_download(repo_id, file.filename, revision=file.commit_hash))

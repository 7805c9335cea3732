"""Fetching a whole model ahead of its use, checked against its hashes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fluxserve.errors import SourceError
from fluxserve.weights.hub import fetch as hub
from fluxserve.weights.hub.fetch import ByteProgress, HubFile
from fluxserve.weights.hub.ungated import compose, discard, ungated_files
from fluxserve.weights.source import hub_name
from fluxserve.weights.verify import Manifest, cached_hash, damage

DISK_MARGIN_BYTES = 100_000_000


@dataclass(frozen=True)
class DownloadPlan:
    """What a MODEL needs, as the Hub tells it. composed: it is made of the ungated files; see `ungated`.

    free_bytes: of the disk that the cache is on.
    """

    repo_id: str
    files: tuple[HubFile, ...]
    composed: bool
    free_bytes: int

    @property
    def missing_bytes(self) -> int:
        return sum(file.nbytes for file in self.files if not file.cached)

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0 or self.missing_bytes + DISK_MARGIN_BYTES <= self.free_bytes


def plan_download(model: str) -> DownloadPlan:
    """Asks the Hub, fetches nothing. model: `schnell`, `dev`, `owner/name` or `owner/name/FILE`.

    Raises:
        SourceError: gated without ungated copies, missing or unreachable; the message is a four-line recipe.
        ConfigError: `model` is no such name.
    """
    repo_id, filename = hub_name(model)
    if filename is not None:
        return _plan(repo_id, [hub.look_up(repo_id, filename)])
    try:
        return _plan(repo_id, hub.list_folder(repo_id, (*hub.model_folders(), *hub.image_folders())))
    except SourceError as error:
        if not hub.is_gated(error) or not ungated_files(repo_id):
            raise
    return _plan(repo_id, [hub.look_up(file.repo_id, file.filename) for file in ungated_files(repo_id)], composed=True)


def download(plan: DownloadPlan, progress: ByteProgress) -> Path:
    """Fetches what is missing and checks all of it. Returns the folder or file that was asked for.

    Raises:
        SourceError: the disk is too small, the Hub stops answering, or a file is not what it should be.
    """
    _require_room(plan)
    paths = hub.fetch(plan.files, progress, resumable=True)
    _verify(plan, paths, progress)
    if plan.composed:
        return compose(plan.repo_id, paths)
    discard(plan.repo_id)  # the published files go before their copies
    return paths[0] if len(paths) == 1 else paths[0].parents[plan.files[0].filename.count("/")]


def _plan(repo_id: str, files: Sequence[HubFile], composed: bool = False) -> DownloadPlan:
    return DownloadPlan(repo_id, tuple(files), composed, _free_bytes(hub.cache_folder()))


def _free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or will be."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return shutil.disk_usage(there).free


def _require_room(plan: DownloadPlan) -> None:
    if not plan.fits:
        raise SourceError(
            f"{plan.repo_id}: {plan.missing_bytes:,} bytes are to be fetched, "
            f"the disk of the cache has {plan.free_bytes:,} free.\n"
            f"  1. Make room on the disk of {hub.cache_folder()}.\n"
            "  2. Or set HF_HOME to a folder on a larger disk, for this and every later command.\n"
            "  Or fetch a smaller file: fluxserve pull city96/FLUX.1-schnell-gguf/flux1-schnell-Q4_K_S.gguf."
        )


def _verify(plan: DownloadPlan, paths: Sequence[Path], progress: ByteProgress) -> None:
    manifest = Manifest(hub.manifest_path())
    pinned = [file.sha256 for file in ungated_files(plan.repo_id)] if plan.composed else [None] * len(paths)
    for file, path, sha256 in zip(plan.files, paths, pinned, strict=True):
        expected = sha256 or cached_hash(path)
        if expected is not None:
            _require_right(path, expected, manifest, partial(_checking, progress, file))


def _require_right(path: Path, expected: str, manifest: Manifest, read: Callable[[int], None]) -> None:
    """Deletes what is something else, so that fetching begins anew."""
    found = manifest.differs(path, expected, read)
    if found is not None:
        path.resolve().unlink()
        raise SourceError(
            f"{damage(path, found, expected)}\n  It has been deleted; run the same command again to fetch it anew."
        )


def _checking(progress: ByteProgress, file: HubFile, done: int) -> None:
    progress(f"checking {file.filename}", done, file.nbytes)

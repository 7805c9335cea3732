"""Fetching a model's files from the Hugging Face Hub into its cache.

Tokens, caches, endpoints and offline mode are huggingface_hub's own (HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    DryRunFileInfo,
    cached_assets_path,
    constants,
    hf_hub_download,
    list_repo_files,
    snapshot_download,
)
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's or httpx2's, by the version
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from fluxserve.errors import SourceError
from fluxserve.models import registry
from fluxserve.weights.hub.resume import fetch_resumably
from fluxserve.weights.hub.unread_shards import INDEX, without_unread

ByteProgress = Callable[[str, int, int], None]
"""(what is being fetched, bytes done, bytes in all)."""

_SUFFIXES = (".json", ".txt", ".model", ".safetensors")
_OTHER_PRECISIONS = ["*.fp16.*", "*.fp8.*", "*.bf16.*", "*.fp16-0*"]
"""Second copies of the weights that some repositories hold beside the first."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, at one revision. cached: it lies in the cache, whole."""

    repo_id: str
    filename: str
    revision: str
    nbytes: int
    cached: bool


def text_folders() -> tuple[str, ...]:
    """The folders of diffusers' layout that hold text encoders and tokenizers, of every family."""
    encoders = (part.folder for part in registry.parts() if part.role == "text_encoder")
    return tuple(dict.fromkeys((*encoders, *registry.tokenizers())))


def image_folders() -> tuple[str, ...]:
    """The folders of image encoders, of every family."""
    return tuple(part.folder for part in registry.parts() if part.role == "image_encoder")


def model_folders() -> tuple[str, ...]:
    """All that a model of any family consists of."""
    folders = (part.folder for part in registry.parts() if part.role != "image_encoder")
    return tuple(dict.fromkeys((*folders, *text_folders())))


def fetch_folder(repo_id: str, subfolders: tuple[str, ...], progress: ByteProgress) -> Path:
    """The snapshot of a repository in diffusers' layout, with the files of `subfolders` and no others.

    Whether the files may be had is asked before any of them is fetched.

    Raises:
        SourceError: gated, missing or unreachable; or in another layout (names the files to choose from).
    """
    with _told_plainly(repo_id):
        try:
            files = _list_folder(repo_id, subfolders)
        except DryRunError as error:
            return _cached_folder(repo_id, error)
    fetched = fetch(files, progress)
    return fetched[0].parents[files[0].filename.count("/")]


def list_folder(repo_id: str, subfolders: tuple[str, ...]) -> list[HubFile]:
    """What `fetch_folder` would fetch, as the Hub tells it. Raises: as `fetch_folder`."""
    with _told_plainly(repo_id):
        return _list_folder(repo_id, subfolders)


def look_up(repo_id: str, filename: str) -> HubFile:
    """One file of a repository, as the Hub tells it. Raises: as `fetch_folder`."""
    with _told_plainly(repo_id):
        return _hub_file(repo_id, hf_hub_download(repo_id, filename, dry_run=True))


def fetch(files: Sequence[HubFile], progress: ByteProgress, resumable: bool = False) -> list[Path]:
    """Fetches what is not cached, smallest first. Returns where each lies in the cache, in the order given.

    resumable: large files go on where an earlier process ended; the caller then checks their hashes.

    Raises: as `fetch_folder`.
    """
    total, done = sum(file.nbytes for file in files), 0
    paths: dict[HubFile, Path] = {}
    for file in sorted(files, key=lambda file: file.nbytes):
        bar = _bar(partial(_report, progress, file.filename, done, total))
        with _told_plainly(file.repo_id):
            if resumable and not file.cached:
                fetch_resumably(file.repo_id, file.filename, file.revision, bar)
            path = hf_hub_download(file.repo_id, file.filename, revision=file.revision, tqdm_class=bar)
        paths[file] = Path(path)
        done += file.nbytes
        progress(file.filename, done, total)
    return [paths[file] for file in files]


def fetch_file(repo_id: str, filename: str, progress: ByteProgress) -> Path:
    """One file of a repository. Raises: as `fetch_folder`."""
    with _told_plainly(repo_id):
        bar = _bar(lambda done, total: progress(filename, done, total))
        return Path(hf_hub_download(repo_id, filename, tqdm_class=bar))


def is_gated(error: SourceError) -> bool:
    """Whether the files are there, for those who accept the repository's terms."""
    return isinstance(error.__cause__, GatedRepoError)


def cache_folder() -> Path:
    """Where fetched files lie."""
    return Path(constants.HF_HUB_CACHE)


def assets_folder() -> Path:
    """Where files that fluxserve makes itself are kept, beside the Hub's cache."""
    return cached_assets_path("fluxserve", namespace="models")


def manifest_path() -> Path:
    """Where it is remembered which files were found right, in the Hub's cache; made when first written."""
    return Path(constants.HF_ASSETS_CACHE) / "fluxserve" / "verified.json"


def _list_folder(repo_id: str, subfolders: tuple[str, ...]) -> list[HubFile]:
    patterns = [INDEX, *(f"{folder}/*{suffix}" for folder in subfolders for suffix in _SUFFIXES)]
    silent = _bar(lambda *_: None)
    files = snapshot_download(
        repo_id, dry_run=True, allow_patterns=patterns, ignore_patterns=_OTHER_PRECISIONS, tqdm_class=silent
    )
    if not any(file.filename.startswith(subfolders) for file in files):
        raise SourceError(_other_layout(repo_id))
    whole = set(subfolders) >= set(model_folders())  # of a part alone, it is not known who reads it
    return [_hub_file(repo_id, file) for file in (without_unread(repo_id, files) if whole else files)]


def _hub_file(repo_id: str, told: DryRunFileInfo) -> HubFile:
    return HubFile(repo_id, told.filename, told.commit_hash, told.file_size or 0, told.is_cached)


def _cached_folder(repo_id: str, error: DryRunError) -> Path:
    """The snapshot as it lies in the cache, when the Hub cannot be asked."""
    if isinstance(error.__cause__, RepositoryNotFoundError):
        raise error.__cause__
    return Path(snapshot_download(repo_id, local_files_only=True, allow_patterns=[INDEX]))


def _report(progress: ByteProgress, filename: str, before: int, total: int, done: int, _: int) -> None:
    progress(filename, before + done, total)


def _bar(report: Callable[[int, int], None]) -> type[tqdm]:
    """A progress bar that draws nothing and reports its bytes done and in all."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self.n += int(n or 0)
            report(self.n, int(self.total or 0))
            return None

    return Bar


@contextmanager
def _told_plainly(repo_id: str) -> Iterator[None]:
    """Turns the Hub's errors into four-line recipes; a gated repository counts as a missing one, so it comes first."""
    try:
        yield
    except DryRunError as error:
        missing = isinstance(error.__cause__, RepositoryNotFoundError)
        raise SourceError(_missing(repo_id) if missing else _unreachable(repo_id, error.__cause__)) from error
    except GatedRepoError as error:
        raise SourceError(_gated(repo_id)) from error
    except RepositoryNotFoundError as error:
        raise SourceError(_missing(repo_id)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise SourceError(_unreachable(repo_id, error.__cause__)) from error
    except EntryNotFoundError as error:
        raise SourceError(f"{repo_id}: has no such file: {error}") from error
    except HTTPError as error:
        raise SourceError(_unreachable(repo_id, error)) from error


def _gated(repo_id: str) -> str:
    return (
        f"{repo_id}: is gated: its terms must be accepted once before it can be fetched.\n"
        f"  1. Read and accept them at {constants.ENDPOINT}/{repo_id}, logged in.\n"
        f"  2. Set HF_TOKEN to a token of that account ({constants.ENDPOINT}/settings/tokens) and start again.\n"
        "  Or use files that need no account: fluxserve pull schnell."
    )


def _missing(repo_id: str) -> str:
    return (
        f"{repo_id}: no such repository at {constants.ENDPOINT}, or it is private, or the token is not accepted.\n"
        "  1. Check the spelling: owner/name; for a local model, check the path.\n"
        "  2. If it is private or gated, set HF_TOKEN to a token that may read it.\n"
        "  Or use files that need no account: fluxserve pull schnell."
    )


def _unreachable(repo_id: str, cause: BaseException | None) -> str:
    reason = "cannot be reached"
    if constants.HF_HUB_OFFLINE:
        reason = "is not asked (HF_HUB_OFFLINE is set)"
    elif isinstance(cause, HfHubHTTPError):
        reason = f"answers {cause.response.status_code}"
    return (
        f"{repo_id}: is not in the cache, and the Hub at {constants.ENDPOINT} {reason}.\n"
        f"  1. Check the connection and HF_ENDPOINT; the cache is {constants.HF_HUB_CACHE} (HF_HOME moves it).\n"
        "  2. Or fetch it on a machine with a connection and copy the cache, or name a folder with the files.\n"
        "  Or draw with the model that comes along: fluxserve serve demo."
    )


def _other_layout(repo_id: str) -> str:
    names = [name for name in list_repo_files(repo_id) if name.endswith((".safetensors", ".gguf"))]
    return (
        f"{repo_id}: has no {INDEX}, so it is not in diffusers' layout.\n"
        f"  Name one of its files as {repo_id}/FILE; it has {', '.join(names) or 'no safetensors or GGUF file'}.\n"
        "  A file that holds the transformer alone needs the rest from a folder or repository: --text-encoders.\n"
        "  Or use the repository in diffusers' layout that it was made from."
    )

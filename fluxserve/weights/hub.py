"""Fetching a model's files from the Hugging Face Hub into its cache. Knows no tensors.

Tokens, caches, endpoints and offline mode are huggingface_hub's own (HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from fluxserve.errors import SourceError

ByteProgress = Callable[[str, int, int], None]
"""(what is being fetched, bytes done, bytes in all)."""

INDEX = "model_index.json"
TEXT_FOLDERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
MODEL_FOLDERS = ("transformer", "vae", *TEXT_FOLDERS)
_SUFFIXES = (".json", ".txt", ".model", ".safetensors")
_OTHER_PRECISIONS = ["*.fp16.*", "*.fp8.*", "*.bf16.*", "*.fp16-0*"]
"""Second copies of the weights that some repositories hold beside the first."""


def fetch_folder(repo_id: str, subfolders: tuple[str, ...], progress: ByteProgress) -> Path:
    """The snapshot of a repository in diffusers' layout, with the files of `subfolders` and no others.

    Whether the files may be had is asked before any of them is fetched.

    Raises:
        SourceError: gated, missing or unreachable; or in another layout (names the files to choose from).
    """
    patterns = [INDEX, *(f"{folder}/*{suffix}" for folder in subfolders for suffix in _SUFFIXES)]
    with _told_plainly(repo_id):
        try:
            files = snapshot_download(repo_id, dry_run=True, allow_patterns=patterns, ignore_patterns=_OTHER_PRECISIONS)
        except DryRunError as error:
            return _cached_folder(repo_id, error)
        if not any(file.filename.startswith(subfolders) for file in files):
            raise SourceError(_other_layout(repo_id))
        return _fetch(repo_id, files, progress)


def fetch_file(repo_id: str, filename: str, progress: ByteProgress) -> Path:
    """One file of a repository. Raises: as `fetch_folder`."""
    with _told_plainly(repo_id):
        bar = _bar(lambda done, total: progress(filename, done, total))
        return Path(hf_hub_download(repo_id, filename, tqdm_class=bar))


def assets_folder() -> Path:
    """Where files that fluxserve makes itself are kept, beside the Hub's cache."""
    return cached_assets_path("fluxserve", namespace="models")


def _cached_folder(repo_id: str, error: DryRunError) -> Path:
    """The snapshot as it lies in the cache, when the Hub cannot be asked."""
    if isinstance(error.__cause__, RepositoryNotFoundError):
        raise error.__cause__
    return Path(snapshot_download(repo_id, local_files_only=True, allow_patterns=[INDEX]))


def _fetch(repo_id: str, files: list[DryRunFileInfo], progress: ByteProgress) -> Path:
    """Fetches what is not cached, one file after the other, smallest first. Returns the folder they lie in."""
    sizes = {file.filename: file.file_size or 0 for file in files}
    total, done, folder = sum(sizes.values()), 0, Path()
    for file in sorted(files, key=lambda file: sizes[file.filename]):
        bar = _bar(partial(_report, progress, file.filename, done, total))
        path = Path(hf_hub_download(repo_id, file.filename, revision=file.commit_hash, tqdm_class=bar))
        folder = path.parents[file.filename.count("/")]
        done += sizes[file.filename]
        progress(file.filename, done, total)
    return folder


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
    except GatedRepoError as error:
        raise SourceError(_gated(repo_id)) from error
    except RepositoryNotFoundError as error:
        raise SourceError(_missing(repo_id)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise SourceError(_unreachable(repo_id, error.__cause__)) from error
    except EntryNotFoundError as error:
        raise SourceError(f"{repo_id}: has no such file: {error}") from error
    except HfHubHTTPError as error:
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

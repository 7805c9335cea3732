"""Fetching large files of the Hub so that a command that was ended goes on where it was.

huggingface_hub begins a file anew in every process. Here the bytes lie in its cache beside the whole files, as
`<hash>.part`; when all are there and have the right hash, the file takes the place that huggingface_hub gives it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # re-exported, though not in so many words

LEAST_BYTES = 50_000_000
"""Smaller files are quicker fetched again."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_resumably(repo_id: str, filename: str, revision: str, bar: type[Any]) -> None:
    """Puts a large file into the cache, where `hf_hub_download` finds it; small ones are left to that.

    bar: a class of huggingface_hub's progress bars. One process at a time fetches a file; others wait for it.

    Raises:
        httpx's errors and OSError: the connection broke, for longer than it is tried again. What came is kept.
    """
    token = get_token()
    url = hf_hub_url(repo_id, filename, revision=revision)
    told = get_hf_file_metadata(url)
    if told.size is None or told.size < LEAST_BYTES or not _SHA256.fullmatch(told.etag or ""):
        return
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    whole, part = blobs / str(told.etag), blobs / f"{told.etag}.part"
    with WeakFileLock(part.with_suffix(".lock")):
        if whole.exists():
            return
        with part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=part.stat().st_size,
                headers={"authorization": f"Bearer {token}"} if token else None,
                expected_size=told.size,
                tqdm_class=bar,
            )
        part.replace(whole)

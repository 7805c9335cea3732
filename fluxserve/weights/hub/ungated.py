"""Copies of gated models that need no account, and the folder each makes. Fetches nothing, reads no tensors.

Which files: see `Variant.ungated`. A model composed of them is a folder of links into the Hub's cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fluxserve.errors import ConfigError
from fluxserve.models import registry
from fluxserve.models.variant import UngatedFile
from fluxserve.weights.hub.fetch import assets_folder


def ungated_files(repo_id: str) -> tuple[UngatedFile, ...]:
    """The copies of a gated repository; none where nobody has made them."""
    return next((v.ungated for v in registry.variants().values() if v.repository == repo_id), ())


def composed_folder(repo_id: str) -> Path | None:
    """The model that `compose` made, if it is there and everything it links to still is."""
    folder = _folder(repo_id)
    places = [folder / file.place for file in ungated_files(repo_id)]
    return folder if places and all(place.is_file() for place in places) else None


def compose(repo_id: str, paths: Sequence[Path]) -> Path:
    """Links the files of `ungated_files`, which lie at `paths`, to their places in one folder.

    Raises:
        ConfigError: it cannot be written.
    """
    folder = _folder(repo_id)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            for file, path in zip(ungated_files(repo_id), paths, strict=True):
                place = made / file.place
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(path)
            discard(repo_id)
            made.rename(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; set HF_HOME to a writable folder") from error
    return folder


def discard(repo_id: str) -> None:
    """Forgets the composed model; the files that it links to stay."""
    shutil.rmtree(_folder(repo_id), ignore_errors=True)


def _folder(repo_id: str) -> Path:
    return assets_folder() / repo_id.replace("/", "--")

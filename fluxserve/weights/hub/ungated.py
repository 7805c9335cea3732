"""Copies of gated models that need no account, and the folder each makes. Fetches nothing, reads no tensors.

Which files: repackaged ones that public installers pin by size and SHA-256, with the two tokenizers that no weight
file holds. A model composed of them is a folder of links into the Hub's cache.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import ConfigError
from fluxserve.weights.hub.fetch import assets_folder


@dataclass(frozen=True)
class UngatedFile:
    """place: its name in the composed folder. sha256: None where nobody has pinned it; the Hub's word then counts."""

    repo_id: str
    filename: str
    place: str
    sha256: str | None = None


_CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
_CLIP_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

UNGATED: Mapping[str, tuple[UngatedFile, ...]] = {
    "black-forest-labs/FLUX.1-schnell": (
        UngatedFile(
            "Comfy-Org/flux1-schnell",
            "flux1-schnell-fp8.safetensors",
            "flux1-schnell-fp8.safetensors",
            "ead426278b49030e9da5df862994f25ce94ab2ee4df38b556ddddb3db093bf72",
        ),
        *(UngatedFile(_CLIP_TOKENIZER, name, f"tokenizer/{name}") for name in _CLIP_TOKENIZER_FILES),
        UngatedFile("lmz/mt5-tokenizers", "t5-v1_1-xxl.tokenizer.json", "tokenizer_2/tokenizer.json"),
    ),
}
"""By the gated repository. The transformer, the autoencoder and both text encoders are in the one large file."""


def composed_folder(repo_id: str) -> Path | None:
    """The model that `compose` made, if it is there and everything it links to still is."""
    folder = _folder(repo_id)
    places = [folder / file.place for file in UNGATED.get(repo_id, ())]
    return folder if places and all(place.is_file() for place in places) else None


def compose(repo_id: str, paths: Sequence[Path]) -> Path:
    """Links the files of UNGATED[repo_id], which lie at `paths`, to their places in one folder.

    Raises:
        ConfigError: it cannot be written.
    """
    folder = _folder(repo_id)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            for file, path in zip(UNGATED[repo_id], paths, strict=True):
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

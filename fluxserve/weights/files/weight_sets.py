"""Which files of a folder belong together: whole files, shards with their index, parts of a split one. Knows no models.

diffusers and transformers name a component's weights after themselves, with a variant before the ending or not.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import CheckpointError
from fluxserve.tensors.reader import TensorReader, name_some
from fluxserve.weights.files.gguf_file import GgufFile
from fluxserve.weights.files.identify import are_unread, open_file
from fluxserve.weights.files.json_file import read_json
from fluxserve.weights.files.safetensors_file import Joined, open_shards

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".gguf")
_INDEX = re.compile(r"(?P<stem>.+)\.safetensors\.index(?P<variant>\.[\w-]+)?\.json")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>(\.[\w-]+)?\.(safetensors|gguf))")
_COMPONENT = re.compile(r"(diffusion_pytorch_model|model)(?P<variant>\.[\w-]+)?\.safetensors")
COMPONENT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class WeightSet:
    """Files that make one reader. path: that people know it by. name: as if it were whole. files: its weights."""

    path: Path
    name: str
    files: tuple[Path, ...]

    @property
    def variant(self) -> str | None:
        """Of a component's weights: fp16, "" for none; None where it is named otherwise."""
        named = _COMPONENT.fullmatch(self.name)
        return (named["variant"] or "")[1:] if named else None

    @property
    def sidecar(self) -> Path:
        """The config that belongs to it: its own, or that of the component's folder."""
        own = self.path.with_name(self.name).with_suffix(".json")
        return own if own.is_file() or self.variant is None else self.path.with_name("config.json")

    def open(self) -> TensorReader:
        """Raises: CheckpointError: a file is missing, damaged or refused."""
        if _INDEX.fullmatch(self.path.name):
            return open_shards(self.path, are_unread)
        if len(self.files) == 1:
            return _require_whole(open_file(self.path))
        missing = [path.name for path in self.files if not path.is_file()]
        if missing:
            raise CheckpointError(f"{self.path}: is one of {len(self.files)} parts; missing {name_some(missing)}")
        return _joined(str(self.path), [open_file(path) for path in self.files])


def sets_in(folder: Path) -> list[WeightSet]:
    """All of a folder's, hidden files aside. Of a component's variants, the one without a name goes before the others.

    Raises:
        OSError: the folder cannot be read.
    """
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    sets = [found for path in visible if (found := _indexed(path)) is not None]
    taken = {path for found in sets for path in (*found.files, found.path.with_name(found.name))}
    for path in visible:
        if path.suffix.lower() in WEIGHT_SUFFIXES and path not in taken:
            found = _numbered(path) or WeightSet(path, path.name, (path,))
            taken |= set(found.files)
            sets.append(found)
    plain = {found.name for found in sets if found.variant == ""}
    return [found for found in sets if not found.variant or found.name.replace(f".{found.variant}.", ".") not in plain]


def set_of(path: Path) -> WeightSet:
    """What a file belongs to: an index to its shards, a part to all parts."""
    beside = (found for other in sorted(path.parent.glob("*.json")) if (found := _indexed(other)) is not None)
    indexed = next((found for found in beside if path in (*found.files, found.path)), None)
    return indexed or _numbered(path) or WeightSet(path, path.name, (path,))


def _indexed(index: Path) -> WeightSet | None:
    """The shards of an index; None if it is none, or a whole file lies beside it and not all of them do."""
    named = _INDEX.fullmatch(index.name)
    if named is None:
        return None
    whole = f"{named['stem']}{named['variant'] or ''}.safetensors"
    weight_map = read_json(index).get("weight_map")
    shards = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
    files = tuple(index.with_name(Path(name).name) for name in sorted(shards))
    if index.with_name(whole).is_file() and not (files and all(path.is_file() for path in files)):
        log.warning("%s: names files that are not there; %s is used", index, whole)
        return None
    return WeightSet(index, whole, files)


def _numbered(path: Path) -> WeightSet | None:
    """All parts that a part's name tells of, there or not."""
    named = _PART.fullmatch(path.name)
    count = int(named["count"]) if named else 0
    if named is None or not 1 <= int(named["number"]) <= count <= 999:
        return None
    names = [f"{named['stem']}-{number:05}-of-{count:05}{named['ending']}" for number in range(1, count + 1)]
    return WeightSet(path, named["stem"] + named["ending"], tuple(path.with_name(name) for name in names))


def _require_whole(reader: TensorReader) -> TensorReader:
    if isinstance(reader, GgufFile) and reader.parts > 1:
        raise CheckpointError(
            f"{reader.source}: is one of {reader.parts} parts of a split GGUF file; keep all of them side by side, "
            "named NAME-00001-of-0000N.gguf, or join them with llama-gguf-split --merge"
        )
    return reader


def _joined(source: str, readers: list[TensorReader]) -> TensorReader:
    homes: dict[str, list[str]] = defaultdict(list)
    for reader in readers:
        for key in reader.keys():
            homes[key].append(reader.source)
    twice = [f"{key} in {' and '.join(sources)}" for key, sources in homes.items() if len(sources) > 1]
    if twice:
        raise CheckpointError(f"{source}: its parts hold the same tensors: {name_some(twice)}")
    return Joined(source, readers)

"""What a weight file holds, told from its content: tensor names and shapes, never the file's name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fluxserve.errors import CheckpointError
from fluxserve.models import registry
from fluxserve.models.family import Part
from fluxserve.models.foreign import foreign_name
from fluxserve.models.markings import PREFIXES
from fluxserve.tensors.reader import TensorReader, name_some, renamed
from fluxserve.weights.files.bitsandbytes import FourBitReader, is_four_bit
from fluxserve.weights.files.file_map import FileCopy
from fluxserve.weights.files.fp8 import Float8Reader, is_float8, refuse_other_formats
from fluxserve.weights.files.gguf_file import GgufFile
from fluxserve.weights.files.nvfp4 import Nvfp4Reader, is_nvfp4
from fluxserve.weights.files.safetensors_file import SafetensorsFile

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


def open_file(path: Path) -> TensorReader:
    """A weight file under its own names.

    Raises:
        CheckpointError: it cannot be read, or is neither safetensors nor GGUF; pickles are refused unread.
    """
    return GgufFile(path) if _is_gguf(path) else SafetensorsFile(path)


def open_copy(path: Path) -> SafetensorsFile:
    """A small file, read whole, so that no later change of it shows.

    Raises:
        CheckpointError: it cannot be read, or is no safetensors file.
    """
    if _is_gguf(path):
        raise CheckpointError(f"{path}: is a GGUF file; a safetensors file is read here")
    return SafetensorsFile(path, FileCopy(path))


def _is_gguf(path: Path) -> bool:
    start = _first_bytes(path)
    looks_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    if path.suffix.lower() in PICKLE_SUFFIXES or (not looks_safetensors and _is_pickle(start)):
        raise CheckpointError(f"{path}: is a pickle, which can run code and is never read; convert it to safetensors")
    return start.startswith(b"GGUF")


def components(reader: TensorReader) -> dict[Part, TensorReader]:
    """The networks in a file, under canonical names.

    Raises:
        CheckpointError: the file is foreign (told by name, with what to use instead), or holds what belongs to none.
    """
    refuse_foreign(reader)
    found: dict[Part, TensorReader] = {}
    for group in map(_whole_tensors, _groups(reader)):
        for part in _parts(group):
            if part in found:
                raise CheckpointError(f"{reader.source}: holds two networks that could be the {part.name}")
            found[part] = part.canonical(group)
    return found


def are_unread(keys: Collection[str], some: Collection[str]) -> bool:
    """Whether there is a family that reads none of `some`. keys: all tensors of the network that they are of."""
    known = [part for part in registry.parts() if any(marker in keys for marker in part.markers)]
    return any(part.reads is not None and not any(map(part.reads, some)) for part in known)


def refuse_foreign(reader: TensorReader) -> None:
    """Raises: CheckpointError that says what the file is, if it is no family's network or packed unreadably."""
    what = foreign_name(reader)
    if what is not None:
        raise CheckpointError(f"{reader.source}: is {what}")
    refuse_other_formats(reader, reader.metadata if isinstance(reader, SafetensorsFile) else {})


def _groups(reader: TensorReader) -> list[TensorReader]:
    """The file's tensors by network, prefixes stripped. One group, but for files that bundle several networks."""
    parts = registry.parts()
    bundled = dict.fromkeys(prefix for part in parts for prefix in (part.bundle_prefix, *part.bundle_aliases))
    present = [prefix for prefix in bundled if any(key.startswith(prefix) for key in reader.keys())]
    ignored = {name for part in parts for name in part.bundle_ignored}
    if len(present) < 2:
        spellings = (*present, *PREFIXES)
        prefix = next((prefix for prefix in spellings if any(key.startswith(prefix) for key in reader.keys())), "")
        return [_stripped(reader, prefix, [key for key in reader.keys() if key not in ignored])]
    others = [key for key in reader.keys() if not key.startswith(tuple(present)) and key not in ignored]
    if others:
        raise CheckpointError(f"{reader.source}: {name_some([f'unexpected {key}' for key in others])}")
    return [_stripped(reader, prefix, [key for key in reader.keys() if key.startswith(prefix)]) for prefix in present]


def _stripped(reader: TensorReader, prefix: str, keys: Collection[str]) -> TensorReader:
    names = {key.removeprefix(prefix): key for key in keys}
    if len(names) < len(keys):
        twice = [name for name in names if name in keys and prefix + name in keys]
        raise CheckpointError(f"{reader.source}: holds with and without {prefix!r}: {name_some(twice)}")
    return renamed(reader, names) if len(names) < len(reader.keys()) or prefix else reader


def _whole_tensors(group: TensorReader) -> TensorReader:
    """`group` with each quantised tensor under its one name, whatever companions it has in the file."""
    reader = FourBitReader(group) if is_four_bit(group) else group
    reader = Nvfp4Reader(reader) if is_nvfp4(reader) else reader
    return Float8Reader(reader) if is_float8(reader) else reader


def _parts(group: TensorReader) -> list[Part]:
    """The part that a group is; several families may each read one network in a way of their own."""
    known = registry.parts()
    for part in known:
        if any(marker in group.keys() for marker in part.markers):
            return [other for other in known if other.markers == part.markers]
    titles = " or ".join(family.title for family in registry.families())
    names = name_some(sorted(group.keys())) or "nothing"
    raise CheckpointError(f"{group.source}: holds no network of {titles} that fluxserve knows; it holds {names}")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _is_pickle(start: bytes) -> bool:
    """A zip archive (torch's format since 1.6) or a bare pickle of protocol 2 to 5."""
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")

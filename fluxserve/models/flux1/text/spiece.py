"""A T5 vocabulary out of sentencepiece's `spiece.model`, read without sentencepiece.

The file is a protobuf message, as google/sentencepiece `src/sentencepiece_model.proto` describes: ModelProto has the
pieces (field 1: text 1, score 2) and the normaliser (field 3: its table of characters 2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import CheckpointError

FIRST_PIECES = ("<pad>", "</s>", "<unk>")
_PIECES, _NORMALISER, _TEXT, _SCORE, _CHARACTERS = 1, 3, 1, 2, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Vocabulary:
    """pieces: by id, with their log-probabilities. character_map: what is written in another way before cutting."""

    pieces: list[tuple[str, float]]
    character_map: bytes


def read_vocabulary(path: Path) -> Vocabulary:
    """T5's vocabulary.

    Raises:
        CheckpointError: the file is damaged, or not T5's kind of vocabulary.
    """
    try:
        vocabulary = _parse(path.read_bytes())
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path}: cannot be read as a sentencepiece model: {error}") from error
    first = tuple(text for text, _ in vocabulary.pieces[: len(FIRST_PIECES)])
    if first != FIRST_PIECES:
        raise CheckpointError(
            f"{path}: begins with {', '.join(first) or 'nothing'}; T5's begins with {', '.join(FIRST_PIECES)}"
        )
    return vocabulary


def _parse(model: bytes) -> Vocabulary:
    pieces, character_map = [], b""
    for number, value in _fields(model):
        if number == _PIECES:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[_SCORE])[0] if _SCORE in piece else 0.0
            pieces.append((piece.get(_TEXT, b"").decode(), score))
        elif number == _NORMALISER:
            character_map = dict(_fields(value)).get(_CHARACTERS, b"")
    return Vocabulary(pieces, character_map)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Each field's number and bytes; a variable-length number's value is not needed here, and left out."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if position + length > len(message):
            raise ValueError("a field ends beyond its message")
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position

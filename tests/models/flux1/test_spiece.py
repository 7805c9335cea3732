"""T5's vocabulary file by itself: the same ids as sentencepiece and as the published tokenizer give."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path

import pytest
import sentencepiece
from transformers import T5Tokenizer

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.text.encoders import load_t5_tokenizer
from fluxserve.models.flux1.text.spiece import read_vocabulary
from tests.weights.stored_files import DATA

PUBLISHED = DATA / "tokenizers/t5"
PIECES = 32000
"""Of the published file; its tokenizer.json has a hundred marks for gaps more."""
PROMPTS = [
    "A vibrant sunset in the mountains, 4k, high quality.",
    "  Ein schöner   Tag\tin Köln: ﬁne ½ ｆｕｌｌ １２３\n",
    "猫 and 🐈 in naïve style <extra_id_3> </s>",
    "",
]


def message(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    length, groups = len(value), []
    while True:
        groups.append(length & 0x7F | (0x80 if length > 0x7F else 0))
        length >>= 7
        if not length:
            return bytes([number << 3 | 2, *groups]) + value


def written(folder: Path, pieces: list[tuple[str, float]], character_map: bytes) -> Path:
    """`spiece.model` as sentencepiece lays it out: a kind where a piece is no plain one, and the normaliser."""
    kinds = {"<unk>": b"\x18\x02", "<pad>": b"\x18\x03", "</s>": b"\x18\x03"}
    model = b"".join(
        message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + kinds.get(text, b""))
        for text, score in pieces
    )
    (folder / "spiece.model").write_bytes(model + message(3, message(1, b"nmt_nfkc") + message(2, character_map)))
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the published vocabulary."""
    published = json.loads((PUBLISHED / "tokenizer.json").read_text(encoding="utf-8"))
    character_map = published["normalizer"]["normalizers"][0]["precompiled_charsmap"]
    pieces = [(text, score) for text, score in published["model"]["vocab"][:PIECES]]
    return written(tmp_path_factory.mktemp("alone"), pieces, base64.b64decode(character_map))


def test_the_published_vocabulary_alone_gives_the_published_ids(alone: Path) -> None:
    ours, theirs = load_t5_tokenizer(alone), T5Tokenizer.from_pretrained(PUBLISHED)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(alone / "spiece.model"))
    for prompt in PROMPTS:
        assert ours(prompt).input_ids == theirs(prompt).input_ids
        if "<" not in prompt:
            assert ours(prompt).input_ids == [*reference.encode(prompt), 1]
    padding = {"padding": "max_length", "max_length": 16, "truncation": True}
    assert ours(PROMPTS[0], **padding).input_ids == theirs(PROMPTS[0], **padding).input_ids


def test_a_file_of_sentencepiece_itself_is_read_as_it_reads_it(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red apple on a white table", "the quick brown fox"] * 20),
        model_writer=model,
        vocab_size=50,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(theirs.id_to_piece(i), theirs.get_score(i)) for i in range(len(theirs))]
    assert read_vocabulary(tmp_path / "spiece.model").pieces == pieces
    assert load_t5_tokenizer(tmp_path)("the apple").input_ids == [*theirs.encode("the apple"), 1]


def test_what_is_no_vocabulary_of_t5_is_refused_by_name(alone: Path, tmp_path: Path) -> None:
    whole = (alone / "spiece.model").read_bytes()
    damaged = tmp_path / "spiece.model"
    for content in (whole[:-1], whole[:100], b"\xff" * 10, b"PK\x03\x04"):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"spiece\.model: cannot be read as a sentencepiece model"):
            read_vocabulary(damaged)
    written(tmp_path, [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)], b"")
    with pytest.raises(CheckpointError, match=r"begins with <unk>, <s>, </s>; T5's begins with <pad>"):
        read_vocabulary(damaged)

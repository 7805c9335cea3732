"""Makes the demo's two tokenizers: a CLIP-style byte-level BPE and a T5-style unigram with folded case.

Both from captions and dictionary texts; both load with transformers' CLIPTokenizer and T5Tokenizer.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from scripts.train_demo import sizes

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def make_clip(texts: Sequence[str], folder: Path) -> CLIPTokenizer:
    """Trains on `texts`, with the normaliser and the splitting of CLIPTokenizer."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(CLIP_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.CLIP_VOCABULARY - len(alphabet),
        initial_alphabet=alphabet,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.model.save(scratch)
        vocabulary = json.loads((Path(scratch) / "vocab.json").read_text())
        merges = [tuple(line.split()) for line in (Path(scratch) / "merges.txt").read_text().splitlines()[1:]]
    for letter in alphabet:  # a byte at a word's end that was never seen there would become an early end of text
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    made = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=sizes.CLIP_TOKENS)
    made.save_pretrained(folder)
    return made


def make_t5(texts: Sequence[str], folder: Path) -> T5Tokenizer:
    """Trains on `texts`. Ids as T5 has them: pad 0, end 1, unknown 2."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=sizes.T5_VOCABULARY,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=0.9999,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=2,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    made = T5Tokenizer(
        vocab=[(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))],
        _spm_precompiled_charsmap=character_map(written.getvalue()),
        extra_ids=0,
        model_max_length=sizes.TEXT_TOKENS,
    )
    made.save_pretrained(folder)
    return made


def character_map(model: bytes) -> bytes:
    """The normaliser's table out of a sentencepiece model: ModelProto.normalizer_spec (3).precompiled_charsmap (2)."""
    return _field(_field(model, 3), 2)


def _field(message: bytes, wanted: int) -> bytes:
    """The first length-delimited protobuf field of that number."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == 2:
            length, position = _varint(message, position)
            if number == wanted:
                return message[position : position + length]
            position += length
        elif kind == 0:
            _, position = _varint(message, position)
        else:
            position += {1: 8, 5: 4}[kind]
    raise ValueError(f"no field {wanted} in the sentencepiece model")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position

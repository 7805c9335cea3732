"""Small working tokenizers for models without the published vocabularies.

They split text into characters (T5) and bytes (CLIP) with the ids that the published ones give to what is special, so
that either kind may stand beside the same weights. No text makes them fail.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_START_ID, CLIP_END_ID = 49406, 49407
CLIP_LENGTH = 77
T5_LENGTH = 512

_T5_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + "".join(map(chr, range(0xC0, 0x180)))


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's byte-level BPE without merges: a token a byte, `</w>` on the last of a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)} | {CLIP_START: CLIP_START_ID, CLIP_END: CLIP_END_ID}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], end_of_word_suffix="</w>", unk_token=CLIP_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([CLIP_START, CLIP_END])
    tokenizer.post_processor = processors.RobertaProcessing((CLIP_END, CLIP_END_ID), (CLIP_START, CLIP_START_ID))
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": CLIP_START, "model_max_length": CLIP_LENGTH}
    _write(folder, tokenizer, config | dict.fromkeys(("eos_token", "unk_token", "pad_token"), CLIP_END))


def write_t5_tokenizer(folder: Path) -> None:
    """T5's unigram over single Latin characters; every other one becomes the unknown token."""
    special = ("<pad>", "</s>", "<unk>")
    pieces = [(piece, 0.0) for piece in special] + [(piece, -2.0) for piece in ("▁", *_T5_CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(list(special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": T5_LENGTH, "extra_ids": 0}
    _write(folder, tokenizer, config | {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})


def _write(folder: Path, tokenizer: Tokenizer, config: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

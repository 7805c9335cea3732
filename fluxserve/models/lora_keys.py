"""The names in LoRA files, whatever the model: what belongs to which module, and what is no low-rank change of one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from fluxserve.tensors.reader import TensorReader

Kind = Literal[
    "down",
    "up",
    "alpha",
    "bias",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
]
LOKR: tuple[Kind, ...] = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOHA: tuple[Kind, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

_ENDINGS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"\.(lora_down|lora(?:_linear_layer)?\.down|lora_A|lora_A\.[^.]+|down)\.weight$"), "down"),
    (re.compile(r"\.(lora_up|lora(?:_linear_layer)?\.up|lora_B|lora_B\.[^.]+|up)\.weight$"), "up"),
    (re.compile(r"\.alpha$"), "alpha"),
    (re.compile(r"\.(lora_up|lora\.up|lora_B|lora_B\.[^.]+)\.bias$"), "bias"),
    *((re.compile(rf"\.{kind}(\.[^.]+)?$"), kind) for kind in (*LOKR, *LOHA)),
)
"""peft writes the adapter's name behind lora_A and the like where it was not asked for a clean file."""

REFUSED = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_t": "LoKr of a convolution",
    "hada_t": "LoHa of a convolution",
    "oft_": "OFT",
    "diff": "a full-rank difference",
    "diff_b": "a difference of a bias",
    "bias": "a change of a bias",
}
"""What is no low-rank change, by a part of the key, or what one begins with. Some files hold it all zero."""

EMBEDDINGS = "bundle_emb."
"""Before the names of trained words that a file carries along; prompts cannot name them."""

CONTROL = "a control LoRA (Canny or Depth)"
_CONTROL_MARKS = ("query_norm.scale", "query_norm.weight", ".norm_q.weight")


def parse_key(key: str) -> tuple[str, Kind] | None:
    """(module, kind) of a key; None if it is no part of a change."""
    for ending, kind in _ENDINGS:
        if match := ending.search(key):
            return key[: match.start()], kind
    return None


def refusal(key: str) -> str | None:
    """What a key is, if it is a change of a kind that is not supported."""
    if parse_key(key):
        return None
    for part in key.split("."):
        for word, what in REFUSED.items():
            if part == word or (word.endswith(("_", "_t")) and part.startswith(word)):
                return what
    return None


def unsupported(reader: TensorReader) -> tuple[tuple[str, ...], str | None]:
    """Keys of kinds that are not supported, and in words which of them changes anything, if one does."""
    kinds = {key: what for key in reader.keys() if (what := refusal(key))}
    acting = next((key for key in kinds if bool(reader.read(key).float().any())), None)
    return tuple(kinds), None if acting is None else f"{acting} is {kinds[acting]}, which fluxserve does not support"


def is_lora(keys: Collection[str]) -> bool:
    """Whether a file changes a model rather than being one: it has such matrices, or a kind that is refused."""
    parsed = {key: parse_key(key) for key in keys}
    matrices = any(found and ("lora" in key or found[1] in (*LOKR, *LOHA)) for key, found in parsed.items())
    return matrices or any(refusal(key) not in (None, REFUSED["bias"]) for key in keys)


def is_control(keys: Collection[str]) -> bool:
    """Whether a LoRA replaces norms too, as those do that make a control model of a plain one."""
    return any(key.endswith(_CONTROL_MARKS) for key in keys) and any(".lora_A." in key for key in keys)

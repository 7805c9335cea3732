"""Reads WordNet's nouns: what things are called and how a dictionary describes them.

Knows nothing of emoji; `text.py` uses these to teach words that no caption holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONCRETE = {"05", "06", "08", "12", "13", "17", "18", "19", "25"}
"""WordNet's files of animals, artefacts, body parts, feelings, food, natural objects, people, phenomena, shapes."""

SCIENTIFIC = re.compile(r"\b(genus|family|order|suborder|phylum|subfamily|class) \w*(idae|ales|aceae|formes|)\b")


@dataclass(frozen=True)
class Noun:
    """One sense. words: its synonyms. meaning: the definition without examples."""

    words: tuple[str, ...]
    meaning: str


def nouns(folder: Path) -> list[Noun]:
    """Every concrete sense that has a name in lower case and is no taxon of a scientific classification."""
    found = []
    for line in (folder / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):
            continue
        fields, _, gloss = line.partition(" | ")
        parts = fields.split()
        if parts[1] not in CONCRETE:
            continue
        words = [parts[4 + 2 * i].replace("_", " ") for i in range(int(parts[3], 16))]
        plain = tuple(word for word in words if word == word.lower() and word.isascii())
        meaning = gloss.split(";")[0].split('"')[0].strip()
        if plain and meaning and not SCIENTIFIC.search(meaning):
            found.append(Noun(plain, meaning))
    return found

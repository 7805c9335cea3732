"""The prompts in free wording stay a test: no description that the demo learns from comes near one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

TRAINING = Path(__file__).parents[2] / "scripts" / "train_demo"
ALIKE = 0.5
"""Of all words of the two, how many a description may share with a prompt."""
SMALL_WORDS = re.compile(r"\b(an?|the|of|with|that|in|on|to|for|and|or|its?|you|is|as|by|from|at|into|up|out)\b")


def stems(text: str) -> set[str]:
    words = re.findall(r"[a-z]+", SMALL_WORDS.sub(" ", text.lower()))
    return {re.sub(r"(ing|es|s|ed)$", "", word) for word in words}


def alike(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def test_no_description_is_like_a_test_prompt() -> None:
    prompts = [stems(entry["prompt"]) for entry in json.loads((TRAINING / "free_prompts.json").read_text())]
    lines = (TRAINING / "descriptions.txt").read_text(encoding="utf-8").splitlines()
    phrases = [phrase for line in lines for phrase in line.split(" | ")[1:]]
    assert len(prompts) == 150
    assert len(phrases) > 10_000
    assert [phrase for phrase in phrases if nearest(stems(phrase), prompts) >= ALIKE] == []


def nearest(words: set[str], prompts: list[set[str]]) -> float:
    return max(alike(words, prompt) for prompt in prompts)


def test_a_prompt_in_other_order_counts_as_alike() -> None:
    assert alike(stems("in the jungle the king with a mane"), stems("king of the jungle with a mane")) >= ALIKE

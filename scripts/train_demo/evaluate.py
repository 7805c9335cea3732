"""How well the demo draws what it is asked: fixed seeds, a fixed choice of labels, one table.

Draws through fluxserve's own pipeline, from an exported folder. Run by scripts/eval_demo.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fluxserve.completion import complete_request
from fluxserve.pipeline.pipeline import FluxPipeline
from scripts.train_demo import captions, judge, scenes, sources
from scripts.train_demo.autoencoder import to_pixels
from scripts.train_demo.judge import Judge
from scripts.train_demo.settings import DEFAULT_STATE, JUDGE_STEPS, PICTURES_PACKAGE_FOLDER

LABELS, COLOURED, PAIRS, SHOWN = 300, 100, 100, 60
CHOICE_SEED = 2026
NATIVE = 128
FREE_PROMPTS = Path(__file__).with_name("free_prompts.json")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One line of the table. share: 0..1, or decibels."""

    what: str
    result: str
    asked: str


class Examiner:
    """Draws prompts and asks the judge. Pictures are drawn once, seed by place in the list."""

    def __init__(self, pipeline: FluxPipeline, judge_: Judge, names: captions.Names, steps: int | None) -> None:
        self.pipeline, self.judge, self.names, self.steps = pipeline, judge_, names, steps

    def draw(self, prompts: Sequence[str], width: int = NATIVE, height: int = NATIVE) -> list[Pixels]:
        """(height, width, 3) each, the i-th from seed i."""
        return [self._draw_one(prompt, seed, width, height) for seed, prompt in enumerate(prompts)]

    def _draw_one(self, prompt: str, seed: int, width: int, height: int) -> Pixels:
        pipeline = self.pipeline
        request = complete_request(
            pipeline.card,
            prompt,
            n=1,
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=None,
            seed=seed,
        )
        (sample,) = pipeline.begin(request)
        while not sample.done:
            pipeline.step([sample])
        return np.asarray(pipeline.decode(sample))

    @torch.no_grad()
    def named(self, pictures: Sequence[Pixels]) -> list[int]:
        """The concept the judge sees in each."""
        logits = [self.judge(to_pixels([picture])) for picture in pictures]
        return torch.cat(logits).argmax(-1).tolist()  # type: ignore[no-any-return]


def labels(examiner: Examiner) -> tuple[float, list[tuple[str, Pixels, bool]]]:
    """Bare labels, chosen by seed."""
    concepts = examiner.names.concepts
    chosen = Random(CHOICE_SEED).sample(range(len(concepts)), LABELS)
    drawn = examiner.draw([concepts[i].label for i in chosen])
    right = [seen == wanted for seen, wanted in zip(examiner.named(drawn), chosen, strict=True)]
    shown = [(concepts[i].label, picture, ok) for i, picture, ok in zip(chosen, drawn, right, strict=True)]
    return sum(right) / LABELS, shown


def free(examiner: Examiner) -> tuple[float, list[tuple[str, Pixels, bool]]]:
    """The prompts of free_prompts.json; any of a prompt's labels is right."""
    prompts = json.loads(FREE_PROMPTS.read_text())
    drawn = examiner.draw([entry["prompt"] for entry in prompts])
    seen = [examiner.names.concepts[i].label for i in examiner.named(drawn)]
    right = [name in entry["labels"] for name, entry in zip(seen, prompts, strict=True)]
    shown = [(entry["prompt"], picture, ok) for entry, picture, ok in zip(prompts, drawn, right, strict=True)]
    return sum(right) / len(prompts), shown


def coloured(examiner: Examiner) -> float:
    """`X on a COLOUR background`: the middle colour of the picture's rim is nearest to the one asked for."""
    rng = Random(CHOICE_SEED + 1)
    pairs = [(rng.choice(examiner.names.concepts).label, rng.choice(list(scenes.COLOURS))) for _ in range(COLOURED)]
    drawn = examiner.draw([f"{label} on a {colour} background" for label, colour in pairs])
    return sum(rim_colour(picture) == colour for picture, (_, colour) in zip(drawn, pairs, strict=True)) / COLOURED


def rim_colour(picture: Pixels) -> str:
    """The named colour nearest to the median of the outermost pixels."""
    rim = np.concatenate([picture[:3].reshape(-1, 3), picture[:, :3].reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])
    middle = np.median(rim.astype(float), axis=0)
    return min(scenes.COLOURS, key=lambda name: float(np.square(middle - scenes.COLOURS[name]).sum()))


def pairs(examiner: Examiner) -> float:
    """`A left of B`: the judge sees A in the left half and B in the right half."""
    rng, concepts = Random(CHOICE_SEED + 2), examiner.names.concepts
    chosen = [rng.sample(range(len(concepts)), 2) for _ in range(PAIRS)]
    drawn = examiner.draw([f"{concepts[a].label} left of {concepts[b].label}" for a, b in chosen])
    half, quarter = NATIVE // 2, NATIVE // 4
    left = examiner.named([picture[quarter : quarter + half, :half] for picture in drawn])
    right = examiner.named([picture[quarter : quarter + half, half:] for picture in drawn])
    return sum([a, b] == wanted for a, b, wanted in zip(left, right, chosen, strict=True)) / PAIRS


@torch.inference_mode()
def reconstruction(pipeline: FluxPipeline, pictures: NDArray[np.uint8]) -> float:
    """dB PSNR of the autoencoder in float32 over all references on white, the mean over pictures."""
    model, rng = pipeline.pictures.autoencoder.float(), Random(0)
    quality = []
    for i in range(len(pictures)):
        pixels = to_pixels([scenes.paint(scenes.Scene((i,), "single"), pictures, NATIVE, NATIVE, rng)])
        error = (model.decode(model.encode(pixels)).clamp(-1, 1) - pixels).square().mean()
        quality.append(float(10 * torch.log10(4 / error)))
    return float(np.mean(quality))


def contact_sheet(shown: Sequence[tuple[str, Pixels, bool]], columns: int = 10) -> Image.Image:
    """Pictures with their prompts below, wrong ones marked, in the order given."""
    cell, text = NATIVE + 8, 30
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (cell + text)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, picture, ok) in enumerate(shown):
        x, y = i % columns * cell + 4, i // columns * (cell + text) + 4
        sheet.paste(Image.fromarray(picture), (x, y))
        lines = _wrapped(prompt, 22)
        pen.multiline_text((x, y + NATIVE + 1), "\n".join(lines[:2]), fill="black" if ok else "#c00000", spacing=1)
    return sheet


def _wrapped(prompt: str, width: int) -> list[str]:
    lines = [""]
    for word in prompt.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def evaluate(model: Path, state: Path, steps: int | None, sheet: Path | None) -> list[Row]:
    """All lines of the table."""
    pictures, names = np.array(sources.load_pictures(state)), captions.Names(sources.load_concepts(state))
    judge_ = judge.train(state, pictures, JUDGE_STEPS)
    examiner = Examiner(FluxPipeline.from_pretrained(str(model)), judge_, names, steps)
    label_share, label_pictures = labels(examiner)
    free_share, free_pictures = free(examiner)
    if sheet is not None:
        contact_sheet([*label_pictures[:SHOWN], *free_pictures[:SHOWN]]).save(sheet)
    return [
        Row("judge, on augmented references it was not trained on", f"{judge.own_share(judge_, pictures):.1%}", "98 %"),
        Row(f"{LABELS} labels drawn by seed, among {len(pictures)}", f"{label_share:.1%}", "85 %"),
        Row(f"{len(free_pictures)} prompts in free wording", f"{free_share:.1%}", "65 %"),
        Row("`X on a COLOUR background`: the colour", f"{coloured(examiner):.1%}", "90 %"),
        Row("`A left of B`: both, in order", f"{pairs(examiner):.1%}", "60 %"),
        Row("autoencoder, references", f"{reconstruction(examiner.pipeline, pictures):.1f} dB", "25 dB"),
    ]


def table(rows: Sequence[Row]) -> str:
    lines = ["| what | result | wanted |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.what} | {row.result} | {row.asked} |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluates the demo model and prints a table.")
    parser.add_argument("--model", type=Path, default=Path("fluxserve/demo/model"), help="an exported folder")
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="where train_demo keeps its files")
    parser.add_argument("--steps", type=int, help="denoise steps (default: the model's)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of pictures there (PNG)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if not (options.state / "pictures.npy").exists():
        sources.fetch(options.state / PICTURES_PACKAGE_FOLDER)
        sources.prepare(options.state / PICTURES_PACKAGE_FOLDER, options.state)
    started = time.monotonic()
    print(table(evaluate(options.model, options.state, options.steps, options.sheet)))
    print(f"\n{time.monotonic() - started:.0f} s")

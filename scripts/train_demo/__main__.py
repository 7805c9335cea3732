"""Makes the demo model from nothing: `python -m scripts.train_demo`. See docs/demo.md.

Runs its stages in order, each going on from what the state folder holds; a run that was killed is started again with
the same command. `--stage` runs one alone.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from scripts.train_demo import (
    autoencoder,
    captions,
    checkpoint,
    clip,
    codes,
    lessons,
    references,
    scenes,
    settings,
    sources,
    t5,
    transformer,
    vocabulary,
    warm_start,
    wordnet,
)
from scripts.train_demo.batches import Material
from scripts.train_demo.export import export
from scripts.train_demo.latents import PatchBasis
from scripts.train_demo.teacher import Teacher

log = logging.getLogger(__name__)

CAPTIONS_FOR_TOKENIZERS = 50_000


@dataclass(frozen=True)
class Run:
    """One run's folder and plan; the methods are the stages."""

    state: Path
    target: Path
    meaning_steps: int
    clip_steps: int
    t5_steps: int
    coarse: transformer.Plan
    plan: transformer.Plan
    warm: Path | None
    device: torch.device

    @property
    def fetched(self) -> Path:
        return self.state / settings.PICTURES_PACKAGE_FOLDER

    @cached_property
    def names(self) -> captions.Names:
        return captions.Names(sources.load_concepts(self.state))

    @cached_property
    def pictures(self) -> NDArray[np.uint8]:
        return np.array(sources.load_pictures(self.state))

    @cached_property
    def lessons(self) -> lessons.Lessons:
        return lessons.make(self.fetched, self.state / "lessons.pt", self.names)

    def fetch(self) -> None:
        sources.fetch(self.fetched)
        sources.prepare(self.fetched, self.state)

    def tokenizers(self) -> None:
        if self.warm is not None:
            warm_start.take(self.warm, self.state, self.pictures)
        texts = tokenizer_texts(self.names, wordnet.nouns(sources.wordnet_folder(self.fetched)))
        if not (self.state / "tokenizer").exists():
            vocabulary.make_clip(texts, self.state / "tokenizer")
        if not (self.state / "tokenizer_2").exists():
            vocabulary.make_t5(texts, self.state / "tokenizer_2")

    def autoencoder(self) -> None:
        autoencoder.train(self.state, self.pictures, settings.CROP_STEPS, settings.WHOLE_STEPS)

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(sources.teacher_folder(self.fetched))

    @cached_property
    def basis(self) -> PatchBasis:
        return autoencoder.fit_basis(self.pictures, self.state / "latents.safetensors")

    @cached_property
    def codes(self) -> codes.Codes:
        path = self.state / codes.FILE
        if not path.exists():
            codes.fit(references.latents(self.pictures, self.basis, 128)).save(path)
        return codes.Codes.load(path)

    def meaning(self) -> None:
        self._clip(self.meaning_steps, has_memory=False)

    def clip(self) -> None:
        self._clip(self.clip_steps, has_memory=True)

    def _clip(self, steps: int, has_memory: bool) -> None:
        source = clip.Source(self.codes, clip.Calls(self.names, self.lessons))
        clip.train(self.state, source, self.teacher, steps, has_memory)

    def t5(self) -> None:
        source = t5.Source(self.pictures, self.names, self.lessons, self.basis)
        t5.train(self.state, source, self.teacher, self.t5_steps)

    def transformer(self) -> None:
        material = Material(self.pictures, self.names, self.lessons, self.basis, self.codes)
        for plan in (self.coarse, self.plan):
            transformer.train(self.state, material, plan, self.device)

    def export(self) -> None:
        size = export(self.state, self.target)
        log.info("wrote %s: %.1f MB", self.target, size / 1e6)
        if self.target.resolve() == settings.MODEL:
            shutil.copy(self.state / codes.FILE, codes.SHIPPED)

    @property
    def whole(self) -> list[str]:
        """The stages of a run. A warm start has trained text encoders: with new readers they would forget first."""
        return [name for name in self.stages if self.warm is None or name not in ("meaning", "clip", "t5")]

    @property
    def stages(self) -> dict[str, Callable[[], None]]:
        return {
            "fetch": self.fetch,
            "tokenizers": self.tokenizers,
            "autoencoder": self.autoencoder,
            "meaning": self.meaning,
            "clip": self.clip,
            "t5": self.t5,
            "transformer": self.transformer,
            "export": self.export,
        }


def tokenizer_texts(names: captions.Names, nouns: list[wordnet.Noun]) -> list[str]:
    """What the tokenizers learn their pieces from: captions, definitions, and above all the names of the things."""
    rng = Random(1)
    n = len(names.concepts)
    texts = [captions.caption(scenes.random_scene(rng, n, 0.6), names, rng) for _ in range(CAPTIONS_FOR_TOKENIZERS)]
    for i, concept in enumerate(names.concepts):
        texts += [*names.everything(i), *concept.names.values(), " ".join(concept.tags)] * 3
        texts += [concept.label, *names.other[i]] * 15
    texts += [noun.meaning for noun in nouns] + [" ".join(noun.words) for noun in nouns]
    rng.shuffle(texts)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.train_demo", description="Makes the demo model.")
    plan = transformer.Plan(steps=settings.TRANSFORMER_STEPS, cooldown=settings.TRANSFORMER_COOLDOWN)
    parser.add_argument("--state", type=Path, default=settings.DEFAULT_STATE, help="where everything is kept")
    parser.add_argument("--target", type=Path, default=settings.MODEL, help="where the model folder is written")
    parser.add_argument("--stage", help="run this one alone")
    parser.add_argument("--warm", type=Path, help="start from the weights of this exported model folder")
    parser.add_argument("--steps", type=int, default=plan.steps, help="of the transformer (default: %(default)s)")
    parser.add_argument(
        "--coarse", type=int, default=settings.COARSE_STEPS, help="the first of them, mostly at half the size"
    )
    parser.add_argument("--cooldown", type=int, default=plan.cooldown, help="the last of them, with a falling rate")
    parser.add_argument("--meaning-steps", type=int, default=settings.MEANING_STEPS, help="of CLIP, without its memory")
    parser.add_argument("--clip-steps", type=int, default=settings.CLIP_STEPS, help="of CLIP with it")
    parser.add_argument("--t5-steps", type=int, default=settings.T5_STEPS, help="of T5, before the transformer")
    parser.add_argument("--single", type=float, default=plan.share_single, help="share of pictures of one thing")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of the transformer's training")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    options.state.mkdir(parents=True, exist_ok=True)
    batches = {"batch": 1024, "batches_a_step": 1} if options.device == "cuda" else {}
    coarse = transformer.Plan(
        min(options.coarse, options.steps),
        **batches,
        share_single=0.95,
        share_noise=0.6,
        share_coarse=0.7,
    )
    plan = transformer.Plan(options.steps, cooldown=options.cooldown, **batches, share_single=options.single)
    run = Run(
        state=options.state,
        target=options.target,
        meaning_steps=options.meaning_steps,
        clip_steps=options.clip_steps,
        t5_steps=options.t5_steps,
        coarse=coarse,
        plan=plan,
        warm=options.warm,
        device=torch.device(options.device),
    )
    if options.stage is not None and options.stage not in run.stages:
        parser.error(f"--stage must be one of {', '.join(run.stages)}, got {options.stage}")
    try:
        for stage in [options.stage] if options.stage else run.whole:
            log.info("stage %s", stage)
            run.stages[stage]()
    except checkpoint.Stop:
        sys.exit("stopped; the same command goes on from here")


if __name__ == "__main__":
    main()

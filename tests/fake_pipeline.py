"""A pipeline without a model: the same verbs, delays and failures on demand. Needs no torch, so it starts at once.

It runs in the real worker process, over the real pipe: `Engine(..., worker_module="tests.fake_worker")`; PYTHONPATH
must hold the repository's root, which tests/__init__.py sees to. Each picture is made from its seed alone:
`expected_pixels(seed, width, height)` gives the array to compare with.

Faults and delays are words inside the prompt, so each request brings its own:

    a cat [slow:step:0.2]        each denoise step takes 0.2 s (stages: text, step, preview, vae, encode)
    a cat [exit:step2]           the process exits (code 1) in step 2, counted from 1
    a cat [exit:step2:once]      ... only the first time that this prompt gets there, in whichever worker
    a cat [kill:vae]             SIGKILLs itself while decoding; [segv:text] SIGSEGVs itself
    a cat [stop:step1]           SIGSTOPs itself: a hung process
    a cat [hang:step1]           sleeps for ever without a beat
    a cat [beat:vae:3]           3 s of decoding (or text) that beats: a slow process, but a live one
    a cat [nan:vae] [oom:step1] [cuda:step1] [invalid:text] [error:encode]
                                 raises NonFiniteOutput, OutOfMemoryError, a sticky device error, InvalidRequest,
                                 ValueError

`once` may end every fault. A prompt of more than 64 words is "cut" to 64 tokens, one a word.

Variables:
    FLUXSERVE_FAKE_DIR    a folder for what outlives a worker, needed for `once`: the file `log` gets a line an act (see
                          `read_log`), the other files mark what has happened once
    FLUXSERVE_FAKE_LOAD   what happens at load: `slow:SECONDS`, `exit:CODE`, `exit:CODE:LAST` or `exit:CODE:FIRST-LAST`
                          for some loads of the folder's alone, counted from 1, or `checkpoint`, `source`, `config`,
                          `nan` for the error of that kind
    FLUXSERVE_FAKE_DESCRIBE, FLUXSERVE_FAKE_FREE  the same for describing without loading; what the device has free
    FLUXSERVE_FAKE_BATCH  max_batch, default 1
    FLUXSERVE_FAKE_PIXELS the card's max_pixels, default none
    FLUXSERVE_FAKE_SIZE   the side of the card's own, square size, default 64
"""

from __future__ import annotations

import io
import os
import re
import signal
import time
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from fluxserve.config import PipelineConfig
from fluxserve.errors import CheckpointError, ConfigError, InvalidRequest, NonFiniteOutput, SourceError
from fluxserve.request import GeneratedImage, GenerationRequest, ModelCard, Placement, Timings
from fluxserve.worker.pipeline_protocol import CancellationCallback, ProgressCallback

Pixels = NDArray[np.uint8]

MAX_TOKENS = 64

CARD = ModelCard(
    id="fluxserve/fake",
    aliases=("fake",),
    variant="schnell",
    steps={"low": 2, "medium": 4, "high": 4, "xhigh": 8, "max": 8},
    max_sequence_length=256,
    guidance_scale=None,
    guidance_max=0.0,
    native_area=64 * 64,
    resamples=False,
    default_width=64,
    default_height=64,
    licence="Apache-2.0",
    description="Patterns made from seeds, for tests.",
    notice=None,
    device="cpu",
    dtype="float32",
)


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which is all the worker looks at."""


class AcceleratorError(RuntimeError):
    """Named as torch's error of a broken device context."""


def expected_pixels(seed: int, width: int, height: int) -> Pixels:
    """What the finished picture of this seed holds: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    tile = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
    return np.tile(tile, (height // 16, width // 16, 1))


def shown_pixels(image: GeneratedImage) -> Pixels:
    """The pixels of a file that came back."""
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"))


@dataclass(frozen=True)
class Act:
    """A line of the log. verb: load, begin, step, preview, decode. seed: 0 for load. detail: PID, images or step."""

    verb: str
    seed: int
    detail: int


def read_log(folder: Path) -> list[Act]:
    """What all workers did that had FLUXSERVE_FAKE_DIR=folder, in order."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [Act(verb, int(seed), int(detail)) for verb, seed, detail in (line.split() for line in lines)]


def count(folder: Path, verb: str, seed: int | None = None) -> int:
    """How often `verb` was done, for `seed` or for any but the warm-up image of each load."""
    loads = sum(act.verb == "load" for act in read_log(folder))
    acts = [act for act in read_log(folder) if act.verb == verb]
    return len(acts) - loads if seed is None else sum(act.seed == seed for act in acts)


@dataclass
class FakeSample:
    """One image that is nothing but its seed and its step."""

    request: GenerationRequest
    index: int
    step: int = 0

    @property
    def seed(self) -> int:
        return self.request.seeds[self.index]

    @property
    def steps(self) -> int:
        return self.request.num_inference_steps

    @property
    def done(self) -> bool:
        return self.step == self.steps

    @property
    def batch_key(self) -> Hashable:
        return self.request.width, self.request.height

    def timings(self, spent_ms: Mapping[str, float]) -> Timings:
        return replace(Timings(steps=self.steps), **spent_ms)  # type: ignore[arg-type]


class FakePipeline:
    """See the head of this file."""

    card = CARD

    def __init__(self, folder: Path | None, max_batch: int) -> None:
        self.max_batch = max_batch
        self._folder = folder

    def begin(self, request: GenerationRequest, cancellation: CancellationCallback) -> list[FakeSample]:
        self._note("begin", request.seeds[0], len(request.seeds))
        cancellation()
        self._stage("text", request, cancellation)
        return [FakeSample(request, index) for index in range(len(request.seeds))]

    def text_usage(self, samples: Sequence[FakeSample]) -> tuple[int, int | None]:
        words = len(samples[0].request.prompt.split())
        return min(words, MAX_TOKENS), words if words > MAX_TOKENS else None

    def most_together(self, sample: FakeSample) -> int:
        return self.max_batch

    def step(self, samples: Sequence[FakeSample]) -> None:
        for sample in samples:
            self._stage("step", sample.request, at=sample.step + 1)
        for sample in samples:
            sample.step += 1
            self._note("step", sample.seed, sample.step)

    def preview(self, sample: FakeSample, cancellation: CancellationCallback) -> Pixels:
        """Nearer to the finished picture with every step."""
        self._note("preview", sample.seed, sample.step)
        self._stage("preview", sample.request, cancellation)
        pixels = expected_pixels(sample.seed, sample.request.width, sample.request.height)
        return (pixels * (sample.step / sample.steps)).astype(np.uint8)

    def decode(self, sample: FakeSample, cancellation: CancellationCallback) -> Pixels:
        cancellation()
        self._stage("vae", sample.request, cancellation)
        self._note("decode", sample.seed, sample.step)
        return expected_pixels(sample.seed, sample.request.width, sample.request.height)

    def replan(self, cancellation: CancellationCallback) -> None:
        cancellation()
        self._note("replan", 0, 0)

    def encode(self, pixels: Pixels, sample: FakeSample) -> GeneratedImage:
        request = sample.request
        self._stage("encode", request)
        buffer = io.BytesIO()
        chunks = PngImagePlugin.PngInfo()
        if request.metadata:
            chunks.add_text("prompt", request.prompt)
            chunks.add_text("seed", str(sample.seed))
        options = {"pnginfo": chunks} if request.output_format == "png" else {"quality": request.output_compression}
        Image.fromarray(pixels).save(buffer, request.output_format.upper(), **options)
        height, width = pixels.shape[:2]
        return GeneratedImage(buffer.getvalue(), request.output_format, width, height, sample.seed, sample.index)

    def _stage(
        self,
        stage: str,
        request: GenerationRequest,
        cancellation: CancellationCallback | None = None,
        at: int | None = None,
    ) -> None:
        """Whatever the prompt wants to happen in this stage (for steps: in step `at`, too)."""
        for kind, argument, once in _faults(request.prompt, stage, at):
            if not once or self._first_time(f"{kind}-{stage}{at or ''}-{zlib.crc32(request.prompt.encode())}"):
                _commit(kind, argument, cancellation)

    def _first_time(self, name: str) -> bool:
        assert self._folder is not None, "`once` needs FLUXSERVE_FAKE_DIR"
        mark = self._folder / name
        happened = mark.exists()
        mark.touch()
        return not happened

    def _note(self, verb: str, seed: int, detail: int) -> None:
        if self._folder:
            with (self._folder / "log").open("a") as log:
                log.write(f"{verb} {seed} {detail}\n")


_FAULT = re.compile(r"\[(\w+?):(text|step\d*|preview|vae|encode)(?::([\d.]+))?(:once)?\]")


def _faults(prompt: str, stage: str, at: int | None) -> Iterator[tuple[str, float, bool]]:
    """(kind, argument, once) of each fault of the prompt that belongs here."""
    for kind, where, argument, once in _FAULT.findall(prompt):
        if where in (stage, f"{stage}{at}"):
            yield kind, float(argument or 0), bool(once)


def _commit(kind: str, argument: float, cancellation: CancellationCallback | None) -> None:
    match kind:
        case "slow":
            time.sleep(argument)
        case "beat":
            assert cancellation is not None, "only text, preview and vae beat"
            for _ in range(round(argument / 0.05)):
                time.sleep(0.05)
                cancellation()
        case "hang":
            time.sleep(3600)
        case "exit":
            os._exit(1)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case _:
            raise _ERRORS[kind]


_ERRORS: dict[str, Exception] = {
    "nan": NonFiniteOutput("the picture is not finite"),
    "oom": OutOfMemoryError("out of memory"),
    "cuda": AcceleratorError("CUDA error: device-side assert triggered"),
    "invalid": InvalidRequest("image cannot be read", param="image", code="invalid_image"),
    "error": ValueError("something the prompt said"),
}

_LOAD_ERRORS: dict[str, Exception] = {
    "checkpoint": CheckpointError("model.safetensors is damaged"),
    "source": SourceError("the repository is gated"),
    "config": ConfigError("no such device"),
    "nan": NonFiniteOutput("the picture is not finite"),
}


def load_fake(config: PipelineConfig, progress: ProgressCallback, _: int | None = None) -> FakePipeline:
    """The loader of `tests.fake_worker`."""
    name = os.environ.get("FLUXSERVE_FAKE_DIR")
    pipeline = FakePipeline(Path(name) if name else None, int(os.environ.get("FLUXSERVE_FAKE_BATCH", "1")))
    if pixels := os.environ.get("FLUXSERVE_FAKE_PIXELS"):
        pipeline.card = replace(pipeline.card, max_pixels=int(pixels))
    if side := int(os.environ.get("FLUXSERVE_FAKE_SIZE", "0")):
        pipeline.card = replace(pipeline.card, default_width=side, default_height=side, native_area=side * side)
    pipeline.card = card_of(config, pipeline.card)
    pipeline._note("load", 0, os.getpid())
    progress("transformer", 50, 100)
    _fail_to_load(os.environ.get("FLUXSERVE_FAKE_LOAD", ""), pipeline._folder)
    progress("transformer", 100, 100)
    return pipeline


def describe_fake(config: PipelineConfig) -> tuple[ModelCard, int]:
    """What `tests.fake_worker` says of a model without loading it; FLUXSERVE_FAKE_DESCRIBE fails as at load."""
    _fail_to_load(os.environ.get("FLUXSERVE_FAKE_DESCRIBE", ""), None)
    return card_of(config, CARD), int(os.environ.get("FLUXSERVE_FAKE_FREE", str(2**40)))


def card_of(config: PipelineConfig, card: ModelCard) -> ModelCard:
    """The fake model's own, or one like it under the model's name. It takes its whole budget, if it has one."""
    if config.memory_budget is not None:
        budget = config.memory_budget
        card = replace(card, placement=Placement(budget, budget, 1, 0, 0, "resident", "whole", 0.0))
    return card if config.model == "demo" else replace(card, id=config.model, aliases=())


def _fail_to_load(fault: str, folder: Path | None) -> None:
    kind, *arguments = fault.split(":")
    if kind == "slow":
        time.sleep(float(arguments[0]))
    elif kind == "exit":
        loads = sum(act.verb == "load" for act in read_log(folder)) if folder else 0
        first, _, last = arguments[1].rpartition("-") if len(arguments) > 1 else ("", "", "99")
        if int(first or 1) <= loads <= int(last):
            os._exit(int(arguments[0]))
    elif kind:
        raise _LOAD_ERRORS[kind]

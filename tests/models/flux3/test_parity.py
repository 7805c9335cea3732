"""FLUX.3 image klein of tiny random weights in float32 against diffusers and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.models.family import PromptStates, StepInputs
from fluxserve.models.flux3.variants import times
from tests.conftest import MakeCheckpoint
from tests.models.flux3.oracle import Flux3Oracle

PROMPTS = ("a red apple", "un café à Zürich, 雪の山の家, 사과", "x" * 61, "x" * 62, "a long road " * 20, "")


@pytest.fixture(scope="module", params=["flux3-klein", "flux3-klein-base"])
def folder(request: pytest.FixtureRequest, tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint(request.param)


@pytest.fixture(scope="module")
def ours(folder: Path) -> FluxPipeline:
    """Warm, as the worker is: a process's first products may round otherwise, and 32 random layers amplify it."""
    pipeline = FluxPipeline.from_pretrained(str(folder), dtype="float32", device="cpu")
    pipeline.run(complete_request(pipeline.card, "warm", width=64, height=64, num_inference_steps=1))
    return pipeline


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Flux3Oracle:
    return Flux3Oracle(folder, distilled="base" not in folder.name)


@pytest.mark.parametrize(("prompt", "length"), [*zip(PROMPTS, (80, 80, 80, 160, 320, 80), strict=True)])
@torch.inference_mode()
def test_text_states(ours: FluxPipeline, theirs: Flux3Oracle, prompt: str, length: int) -> None:
    """Padded to a multiple of 80; what pads is read by the transformer too."""
    encoder, processor = theirs.pipeline.text_encoder, theirs.pipeline.tokenizer
    (expected,) = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(encoder, processor, prompt)
    text = ours.networks.model.encode(prompt, 4000, lambda: None)
    assert text.states.shape == expected.shape == (length, 8 * 24)
    assert (text.states - expected).abs().max() <= 1e-5
    assert text.tokens == text.prompt_tokens <= length


@torch.inference_mode()
def test_a_prompt_is_cut_where_diffusers_cuts_it(ours: FluxPipeline, theirs: Flux3Oracle) -> None:
    encoder, processor = theirs.pipeline.text_encoder, theirs.pipeline.tokenizer
    (expected,) = Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(encoder, processor, PROMPTS[4], None, 100)
    text = ours.networks.model.encode(PROMPTS[4], 100, lambda: None)
    assert text.states.shape == (100, 192)
    assert (text.states - expected).abs().max() <= 1e-5
    assert (text.tokens, text.prompt_tokens) == (100, 259)


@pytest.mark.parametrize("references", [(), ((4, 6),), ((4, 6), (2, 2), (5, 3))])
@torch.inference_mode()
def test_velocity_with_and_without_references(
    ours: FluxPipeline, theirs: Flux3Oracle, references: tuple[tuple[int, int], ...]
) -> None:
    grid, transformer = (6, 8), theirs.pipeline.transformer
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randn(1, h * w, 32, generator=generator) for h, w in (grid, *references)]
    text = torch.randn(1, 20, 192, generator=generator)
    schedule = torch.tensor([0.9, 0.6, 0.3])
    rows = ours.networks.model.rows(schedule, None, PromptStates(text[0], None, 20, 20))
    assert rows.shape == (3, 20 * 64)
    model, others = ours.networks.model, torch.cat(tokens[1:], dim=1) if references else None
    ids = [_prepare_image_ids(*size, 0.5, -(1 + k)) for k, size in enumerate(references)]
    for step, (t, t_next) in enumerate(zip((0.9, 0.6, 0.3), (0.6, 0.3, 0.0), strict=True)):
        expected = transformer(
            hidden_states=tokens[0],
            encoder_hidden_states=text,
            timestep=torch.tensor([t]),
            target_timestep=torch.tensor([t_next]) if transformer.config.flow_map else None,
            img_ids=_prepare_image_ids(*grid, 0.5),
            txt_ids=Flux3TextRoPEInputsStep._prepare_text_ids(text),
            image_cond_hidden_states=others,
            image_cond_ids=torch.cat(ids) if references else None,
            return_dict=False,
        )[0]
        positions = model.positions(20, [grid, *references])
        drawn = model.velocity(StepInputs(tokens[0], text, rows[step : step + 1], positions, others))
        assert drawn.shape == tokens[0].shape
        assert drawn.std() > 0.1
        assert (drawn - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("steps", [1, 4, 16, 50])
def test_times(theirs: Flux3Oracle, steps: int) -> None:
    """Whatever the size."""
    scheduler = theirs.pipeline.scheduler
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    assert times(steps, 48) == times(steps, 4096) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("width", "height", "prompt", "seed"), [(128, 96, PROMPTS[0], 7), (64, 160, PROMPTS[1], 8), (96, 64, PROMPTS[4], 9)]
)
def test_pictures(ours: FluxPipeline, theirs: Flux3Oracle, width: int, height: int, prompt: str, seed: int) -> None:
    """The same seed, the same picture; base with guidance 3.5 against an empty prompt of 80 tokens."""
    options = {"width": width, "height": height, "num_inference_steps": 4}
    expected = theirs.draw(prompt, seed=seed, **options)
    (sample,) = ours.begin(complete_request(ours.card, prompt, seed=seed, **options))
    while not sample.done:
        ours.step([sample])
    drawn = ours.decode(sample)
    assert drawn.std() > 5
    assert np.abs(drawn.astype(float) - expected).max() <= 2

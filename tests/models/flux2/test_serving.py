"""FLUX.2 [klein] in every format and placement draws what the plain model draws, and is served."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from safetensors.torch import save_file

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.models.synthetic import Packing
from fluxserve.weights.synthetic.write import write_model
from tests.conftest import MakeCheckpoint
from tests.server import running
from tests.server.running import REAL_WORKER


def load(model: Path, **options: object) -> FluxPipeline:
    return FluxPipeline.from_pretrained(str(model), device="cpu", dtype="float32", **options)  # type: ignore[arg-type]


def latents(pipeline: FluxPipeline, **options: object) -> torch.Tensor:
    request = complete_request(pipeline.card, "a cat", width=96, height=64, seed=5, **options)  # type: ignore[arg-type]
    (sample,) = pipeline.begin(request)
    while not sample.done:
        pipeline.step([sample])
    return sample.latents


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: MakeCheckpoint) -> FluxPipeline:
    return load(tiny_checkpoint("klein"))


def test_single_files_and_streaming_draw_the_same(plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint) -> None:
    files = tiny_checkpoint("klein", "bfl") / "flux-2-klein.safetensors"
    expected = latents(plain)
    assert torch.equal(latents(load(files)), expected)
    streamed = load(tiny_checkpoint("klein"), offload="stream")
    assert len(streamed.plan.streamed) == 5
    assert torch.equal(latents(streamed), expected)


@pytest.mark.parametrize(("packing", "tolerance"), [("fp8", 0.2), ("q4_0", 0.6)])
def test_packed_files_draw_nearly_the_same(
    plain: FluxPipeline, tmp_path: Path, packing: Packing, tolerance: float
) -> None:
    """The error of the final latents, relative to their spread, on random weights."""
    write_model(tmp_path / "model", "tiny", "klein", "bfl", seed=1, packing=packing)
    (file,) = (path for path in (tmp_path / "model").glob("flux-2-*") if path.suffix != ".json")
    expected = latents(plain)
    error = (latents(load(file)) - expected).square().mean().sqrt() / expected.std()
    assert 0 < error < tolerance


def test_packing_at_load_halves_the_blocks(plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint) -> None:
    packed = load(tiny_checkpoint("klein"), storage="int8")
    assert packed.plan.peak_bytes < plain.plan.peak_bytes
    error = (latents(packed) - latents(plain)).square().mean().sqrt() / latents(plain).std()
    assert 0 < error < 0.1


def test_rows_are_kept_for_every_prompt_of_a_schedule(plain: FluxPipeline) -> None:
    one, other = (plain.begin(complete_request(plain.card, prompt, width=64, height=64)) for prompt in ("a", "b"))
    assert one[0].cond.rows is other[0].cond.rows


@pytest.mark.parametrize("spelling", ["single_blocks.0.linear1", "single_transformer_blocks.0.attn.to_qkv_mlp_proj"])
def test_loras_in_both_spellings(
    plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint, tmp_path: Path, spelling: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, 64, generator=generator), torch.randn(576, 2, generator=generator)
    save_file(
        {f"transformer.{spelling}.lora_A.weight": down, f"transformer.{spelling}.lora_B.weight": up},
        tmp_path / "style.safetensors",
    )
    changed = load(tiny_checkpoint("klein"), loras=(str(tmp_path / "style.safetensors"),))
    weight = changed.networks.model.denoiser.single_blocks[0].linear1.weight
    expected = plain.networks.model.denoiser.single_blocks[0].linear1.weight + up @ down
    assert torch.allclose(weight, expected, rtol=1e-2, atol=1e-2)  # the file is in bfloat16
    assert not torch.equal(latents(changed), latents(plain))


def test_it_is_served(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    server = running.start([str(tiny_checkpoint("klein")), "--device", "cpu"], tmp_path, REAL_WORKER).wait_ready()
    try:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        result = client.images.generate(
            model="flux2-klein", prompt="a cat", size="64x96", response_format="b64_json", extra_body={"seed": 5}
        )
        assert result.data is not None
        assert base64.b64decode(result.data[0].b64_json or "").startswith(b"\x89PNG")
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("command", "words"), [("doctor", "FLUX.2 [klein] 4B"), ("models", "FLUX.1 [dev] Non-Commercial")]
)
def test_names_in_brackets_are_shown_as_they_are(tiny_checkpoint: MakeCheckpoint, command: str, words: str) -> None:
    arguments = [str(tiny_checkpoint("klein"))] if command == "doctor" else []
    shown = subprocess.run(
        [sys.executable, "-m", "fluxserve", command, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        timeout=300,
    )
    assert words in shown.stdout

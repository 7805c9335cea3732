"""Z-Image in every format and placement draws what the plain model draws."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.input_images import read_inputs
from fluxserve.models.synthetic import Packing
from fluxserve.models.zimage.lora_names import lora_targets
from fluxserve.models.zimage.sizes import TINY
from fluxserve.weights.describe import describe
from fluxserve.weights.synthetic.write import write_model
from tests.conftest import MakeCheckpoint
from tests.models.loading import error, latents, load
from tests.server.running import png
from tests.weights.stored_files import rewrite

TARGETS = lora_targets(TINY.transformer)


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: MakeCheckpoint) -> FluxPipeline:
    return load(tiny_checkpoint("zimage-turbo"))


@pytest.fixture(scope="module")
def base(tiny_checkpoint: MakeCheckpoint) -> FluxPipeline:
    return load(tiny_checkpoint("zimage"))


def test_single_files_and_streaming_draw_the_same(
    plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """ComfyUI's split files side by side; padding tokens as vectors, a left-over norm, ComfyUI's prefix."""
    files = tiny_checkpoint("zimage-turbo", "bfl")
    expected = latents(plain)
    assert torch.equal(latents(load(files / "z_image_turbo.safetensors")), expected)
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    stored = load_file(files / "z_image_turbo.safetensors") | {"norm_final.weight": torch.ones(96)}
    (tmp_path / "z_image_turbo.safetensors").unlink()
    odd = {key: tensor.flatten() if "pad_token" in key else tensor for key, tensor in stored.items()}
    prefixed = {f"model.diffusion_model.{key}": tensor for key, tensor in odd.items()}
    save_file(prefixed, tmp_path / "z_image_turbo.safetensors")
    assert torch.equal(latents(load(tmp_path / "z_image_turbo.safetensors")), expected)
    streamed = load(tiny_checkpoint("zimage-turbo"), offload="stream")
    assert len(streamed.plan.streamed) == 7
    assert torch.equal(latents(streamed), expected)


def test_an_all_in_one_file_holds_all_three(
    plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    files = tiny_checkpoint("zimage-turbo", "bfl")
    prefixes = {
        "z_image_turbo": "model.diffusion_model.",
        "ae": "vae.",
        "qwen_3_4b": "text_encoders.qwen3_4b.transformer.",
    }
    together = {
        prefix + key: tensor
        for name, prefix in prefixes.items()
        for key, tensor in load_file(files / f"{name}.safetensors").items()
    }
    save_file(together, tmp_path / "all_z_image_turbo.safetensors")
    (tmp_path / "tokenizer").symlink_to(files / "tokenizer")
    (tmp_path / "all_z_image_turbo.json").write_text(
        '{"axes_dims": [4, 8, 12], "norm_num_groups": 8, "_fluxserve_variant": "zimage-turbo"}'
    )
    assert torch.equal(latents(load(tmp_path / "all_z_image_turbo.safetensors")), latents(plain))


@pytest.mark.parametrize(("packing", "tolerance"), [("fp8", 0.2), ("q4_0", 0.6)])
def test_packed_files_draw_nearly_the_same(
    plain: FluxPipeline, tmp_path: Path, packing: Packing, tolerance: float
) -> None:
    write_model(tmp_path / "model", "tiny", "zimage-turbo", "bfl", seed=1, packing=packing)
    (file,) = (path for path in (tmp_path / "model").glob("z_image_turbo*") if path.suffix != ".json")
    assert 0 < error(latents(load(file)), latents(plain)) < tolerance
    assert packing in str(describe(file)).lower() or "float8" in str(describe(file))


@pytest.mark.parametrize("option", ["storage", "compute"])
def test_eight_bits_halve_the_blocks(plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint, option: str) -> None:
    packed = load(tiny_checkpoint("zimage-turbo"), **{option: "int8"})
    assert packed.plan.peak_bytes < plain.plan.peak_bytes
    assert 0 < error(latents(packed), latents(plain)) < 0.1


def test_an_option_says_what_no_name_tells(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    for path in tiny_checkpoint("zimage", "bfl").iterdir():
        name = path.name.replace("z_image", "somebodys-own")
        (tmp_path / name).symlink_to(path)
    file = tmp_path / "somebodys-own.safetensors"
    assert load(file).card.variant == "zimage-turbo"
    assert load(file, variant="zimage").card.true_cfg_scale == 6


def test_bfloat16_is_near(plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint) -> None:
    half = FluxPipeline.from_pretrained(str(tiny_checkpoint("zimage-turbo")), device="cpu", dtype="bfloat16")
    assert error(latents(half), latents(plain)) < 0.1


def test_rows_are_kept_for_every_prompt_of_a_schedule(plain: FluxPipeline) -> None:
    one, other = (plain.begin(complete_request(plain.card, prompt, width=64, height=64)) for prompt in ("a", "bcd"))
    assert one[0].cond.rows is other[0].cond.rows
    assert one[0].batch_key != other[0].batch_key  # prompts of unequal length


def test_a_batch_draws_what_single_samples_draw(base: FluxPipeline) -> None:
    """Two prompts of one length, each against a negative prompt of another, at different steps."""
    options = {"width": 64, "height": 96, "num_inference_steps": 4, "negative_prompt": "grey, and much longer " * 3}
    requests = [complete_request(base.card, prompt, seed=seed, **options) for prompt, seed in (("ab", 1), ("cd", 2))]
    alone = []
    for request in requests:
        (sample,) = base.begin(request)
        while not sample.done:
            base.step([sample])
        alone.append(sample.latents)
    together = [base.begin(request)[0] for request in requests]
    base.step(together[:1])
    assert together[0].batch_key == together[1].batch_key
    for _ in range(3):
        base.step(together)
    base.step(together[1:])
    for sample, expected in zip(together, alone, strict=True):
        assert (sample.latents - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("negative", ["", "blurred", "a dog"])
def test_the_batch_key_holds_the_negative_prompts_length(base: FluxPipeline, negative: str) -> None:
    keys = {
        base.begin(complete_request(base.card, "a cat", width=64, height=64, negative_prompt=text))[0].batch_key
        for text in ("", negative)
    }
    assert len(keys) == (1 if negative == "" else 2)


def test_guidance_acts(base: FluxPipeline) -> None:
    drawn = [latents(base, true_cfg_scale=scale) for scale in (1.0, 3.0, 6.0)]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], latents(base))  # the default
    assert not torch.equal(drawn[2], latents(base, negative_prompt="a dog"))


def test_edits_by_strength(plain: FluxPipeline) -> None:
    inputs = read_inputs(png(96, 64), None)
    distances = []
    for strength in (0.25, 0.75):
        options = {"strength": strength, "num_inference_steps": 8, "seed": 3, "width": 96, "height": 64}
        (sample,) = plain.begin(complete_request(plain.card, "a cat", inputs=inputs, **options))
        assert sample.steps == 8 * strength
        assert sample.picture is not None
        clean = plain.pictures.encode(sample.picture.pixels, 96, 64, lambda: None)
        while not sample.done:
            plain.step([sample])
        distances.append(float((sample.latents - clean).square().mean()))
    assert 0 < distances[0] < distances[1]


def test_a_mask_keeps_what_is_opaque(plain: FluxPipeline) -> None:
    mask = Image.new("RGBA", (96, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (48, 0, 96, 64))
    inputs = read_inputs(png(96, 64), mask)
    request = complete_request(plain.card, "a cat", inputs=inputs, num_inference_steps=4, width=96, height=64)
    (sample,) = plain.begin(request)
    while not sample.done:
        plain.step([sample])
    drawn = plain.decode(sample)
    assert (drawn[:, :48] == (200, 30, 30)).all()
    assert drawn[:, 48:].std() > 5


def test_previews_come_nearer_and_tiles_join(plain: FluxPipeline) -> None:
    request = complete_request(plain.card, "a cat", width=576, height=64, num_inference_steps=4, seed=1)
    (sample,) = plain.begin(request)
    seen = []
    while not sample.done:
        plain.step([sample])
        seen.append(plain.preview(sample).astype(int))
    whole = plain.decode(sample).astype(int)
    assert [np.abs(picture - whole).mean() for picture in seen][-1] == 0
    assert np.abs(seen[0] - whole).mean() > np.abs(seen[2] - whole).mean() > 0


def test_encoding_can_be_stopped_within_a_layer(plain: FluxPipeline) -> None:
    class Stopped(Exception):
        pass

    beats = []

    def cancellation() -> None:
        beats.append(threading.get_ident())
        if len(beats) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        plain.begin(complete_request(plain.card, "a prompt that is not cached", width=64, height=64), cancellation)
    assert len(beats) == 4


LORAS = {
    "diffusers": ("transformer.layers.1.attention.to_k", "layers.1.attention.qkv", slice(96, 192)),
    "diffusers, out": ("transformer.noise_refiner.0.attention.to_out.0", "noise_refiner.0.attention.out", slice(96)),
    "diffusers, outer": ("transformer.all_x_embedder.2-1", "x_embedder", slice(96)),
    "comfyui": ("diffusion_model.layers.0.attention.qkv", "layers.0.attention.qkv", slice(288)),
    "comfyui, split": ("diffusion_model.layers.0.attention.to_v", "layers.0.attention.qkv", slice(192, 288)),
    "kohya": ("lora_unet_layers_2_feed_forward_w1", "layers.2.feed_forward.w1", slice(256)),
    "kohya, fused": ("lora_unet_layers_2_attention_qkv", "layers.2.attention.qkv", slice(288)),
    "musubi": ("lora_unet_context_refiner_1_attention_to_q", "context_refiner.1.attention.qkv", slice(96)),
    "musubi, out": ("lora_unet_layers_0_attention_to_out_0", "layers.0.attention.out", slice(96)),
    "modulation": ("lora_unet_layers_0_adaLN_modulation_0", "layers.0.adaLN_modulation.0", slice(384)),
    "peft": ("base_model.model.layers.0.feed_forward.w2", "layers.0.feed_forward.w2", slice(96)),
}


@pytest.mark.parametrize("kind", LORAS)
def test_loras_in_every_spelling(
    plain: FluxPipeline, tiny_checkpoint: MakeCheckpoint, tmp_path: Path, kind: str
) -> None:
    module, linear, rows = LORAS[kind]
    target = TARGETS[module]
    generator = torch.Generator().manual_seed(1)
    down = torch.randn(2, target.columns, generator=generator)
    up = torch.randn(target.rows, 2, generator=generator)
    path = tmp_path / "style.safetensors"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, path)
    changed = load(tiny_checkpoint("zimage-turbo"), loras=(f"{path}:0.5",))
    weight = changed.networks.model.denoiser.get_submodule(linear).weight
    before = plain.networks.model.denoiser.get_submodule(linear).weight
    expected = before.clone()
    expected[rows] += 0.5 * up @ down
    assert torch.allclose(weight, expected, rtol=1e-2, atol=1e-2)  # the file is in bfloat16
    assert not torch.equal(latents(changed), latents(plain))


def test_kohyas_names_are_those_that_diffusers_converts() -> None:
    """Each goes to the rows of the Linear that diffusers' converter sends it to, fused ones to all three."""
    for module in (
        "layers_0_attention_to_k",
        "noise_refiner_1_feed_forward_w3",
        "context_refiner_0_attention_to_out_0",
    ):
        keys = {f"lora_unet_{module}.lora_{way}.weight": torch.ones(4, 4) for way in ("down", "up")}
        (theirs, _) = (
            key.removesuffix(".lora_A.weight") for key in _convert_non_diffusers_z_image_lora_to_diffusers(keys)
        )
        assert TARGETS[f"lora_unet_{module}"] == TARGETS[theirs]


def test_a_lora_may_be_asked_for(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """Beside streamed blocks, and packed ones."""
    module = "diffusion_model.layers.1.attention.qkv"
    tensors = {f"{module}.lora_down.weight": torch.randn(2, 96), f"{module}.lora_up.weight": torch.randn(288, 2)}
    save_file(tensors, tmp_path / "style.safetensors")
    for options in ({"offload": "stream"}, {"storage": "fp8"}):
        pipeline = load(tiny_checkpoint("zimage-turbo"), lora_dir=str(tmp_path), **options)
        assert pipeline.card.loras == ("style",)
        assert not torch.equal(latents(pipeline, loras=("style",)), latents(pipeline))


def test_replanning_goes_on_with_samples_under_way(tiny_checkpoint: MakeCheckpoint, plain: FluxPipeline) -> None:
    pipeline = load(tiny_checkpoint("zimage-turbo"), memory_budget=2**31)
    given = {"width": 96, "height": 64, "seed": 5, "num_inference_steps": 4}
    (sample,) = pipeline.begin(complete_request(pipeline.card, "a cat", **given))
    pipeline.step([sample])
    pipeline.replan()
    while not sample.done:
        pipeline.step([sample])
    assert torch.equal(sample.latents, latents(plain))


def test_weights_of_another_kind_are_not_mistaken(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """klein's text encoder file serves Z-Image only if it has the layers."""
    files = tiny_checkpoint("zimage-turbo", "bfl")
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    shorter = tmp_path / "qwen_3_4b.safetensors"
    tensors = load_file(shorter)
    shorter.unlink()
    save_file(tensors, shorter)
    rewrite(shorter, lambda stored: {k: v for k, v in stored.items() if ".layers.34." not in k and ".35." not in k})
    (tmp_path / "qwen_3_4b.json").unlink()
    with pytest.raises(Exception, match="has 34 layers, 35 are read"):
        load(tmp_path / "z_image_turbo.safetensors")

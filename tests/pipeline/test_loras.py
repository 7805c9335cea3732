"""LoRAs through the whole pipeline: merged, beside packed weights, and chosen by each request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline as DiffusersPipeline
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.completion import complete_request
from fluxserve.config import PipelineConfig
from fluxserve.errors import CheckpointError, ConfigError, InvalidRequest
from fluxserve.pipeline.networks import draw_blueprint
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.request import GenerationRequest, LoraChoice
from fluxserve.weights.synthetic.write import write_model
from tests.conftest import MakeCheckpoint
from tests.loras import PREFIXES, low_rank, write_loras


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loras(tmp_path_factory.mktemp("loras"))


Load = Callable[..., FluxPipeline]


@pytest.fixture(scope="module")
def load(tiny_checkpoint: MakeCheckpoint) -> Load:
    plain = PipelineConfig(str(tiny_checkpoint("schnell")), device="cpu", dtype="float32")
    return lambda **options: FluxPipeline.load(replace(plain, **options), lambda *_: None)


@pytest.fixture(scope="module")
def shelved(load: Load, folder: Path) -> FluxPipeline:
    return load(lora_dir=str(folder))


def asked(pipeline: FluxPipeline, *loras: LoraChoice, prompt: str = "a cat") -> GenerationRequest:
    request = complete_request(pipeline.card, prompt, width=64, height=64, num_inference_steps=2, seed=3)
    return replace(request, loras=loras)


def latents(pipeline: FluxPipeline, *loras: LoraChoice) -> Tensor:
    (sample,) = pipeline.begin(asked(pipeline, *loras))
    while not sample.done:
        pipeline.step([sample])
    return sample.latents


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("name", PREFIXES)
def test_a_request_draws_as_a_model_with_the_lora_merged(
    load: Load, shelved: FluxPipeline, folder: Path, name: str
) -> None:
    """Merged, the weights are rounded to the file's bfloat16."""
    plain = latents(shelved)
    beside = latents(shelved, LoraChoice(name, 0.5))
    merged = latents(load(loras=(f"{folder / name}.safetensors:0.5",)))
    assert difference(beside, plain) > 0.02
    assert difference(beside, merged) < 0.2 * difference(beside, plain)
    assert torch.equal(latents(shelved), plain)  # nothing of it stays


def test_from_pretrained_takes_them_as_the_command_line_does(
    load: Load, folder: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    loras = (f"{folder / 'style'}.safetensors:0.5", f"{folder / 'words'}.safetensors")
    model = str(tiny_checkpoint("schnell"))
    pipeline = FluxPipeline.from_pretrained(model, device="cpu", dtype="float32", loras=loras)
    assert torch.equal(latents(pipeline), latents(load(loras=loras)))


def test_streamed_packed_at_load_or_in_8_bits_they_still_act(load: Load, folder: Path) -> None:
    files = tuple(f"{folder / name}.safetensors" for name in PREFIXES)
    chosen = [LoraChoice(name) for name in PREFIXES]
    expected = latents(load(lora_dir=str(folder)), *chosen)
    assert difference(expected, latents(load())) > 1
    for options in ({"offload": "stream"}, {"storage": "int8"}, {"compute": "int8"}):
        at_load, at_request = load(loras=files, **options), load(lora_dir=str(folder), **options)
        assert difference(latents(at_load), expected) < 0.1
        assert difference(latents(at_request, *chosen), expected) < 0.1


@pytest.mark.parametrize("offload", ["none", "stream"])
def test_packed_files_are_left_alone_and_loras_run_beside_them(
    load: Load, folder: Path, tmp_path: Path, offload: str
) -> None:
    write_model(tmp_path / "model", "tiny", "schnell", "bfl", seed=1, packing="fp8")
    options = {"model": str(tmp_path / "model"), "offload": offload}
    files = tuple(f"{folder / name}.safetensors" for name in PREFIXES)
    shelved = load(lora_dir=str(folder), **options)
    at_request = latents(shelved, *(LoraChoice(name) for name in PREFIXES))
    assert difference(latents(load(loras=files, **options)), at_request) < 0.05  # CLIP alone is merged, and rounded
    assert difference(latents(shelved), at_request) > 1


def test_sets_are_not_stepped_together_nor_confused_in_the_caches(shelved: FluxPipeline) -> None:
    style, strong, words = LoraChoice("style"), LoraChoice("style", 2.0), LoraChoice("words")
    (plain,), (some,), (more,) = (
        shelved.begin(asked(shelved, *loras, prompt="a dog")) for loras in ((), (style,), (strong,))
    )
    assert len({sample.batch_key for sample in (plain, some, more)}) == 3
    assert plain.cond.text is some.cond.text is more.cond.text  # no text encoder was changed
    assert not torch.equal(plain.cond.rows, some.cond.rows)
    (worded,) = shelved.begin(asked(shelved, words, prompt="a dog"))
    assert not torch.equal(worded.cond.text.pooled, plain.cond.text.pooled)
    (off,) = shelved.begin(asked(shelved, LoraChoice("style", 0.0), prompt="a dog"))
    assert off.batch_key == plain.batch_key
    (one,), (other,) = (shelved.begin(asked(shelved, *pair)) for pair in ((style, words), (words, style)))
    assert one.batch_key == other.batch_key


def test_a_sample_under_way_keeps_its_loras_through_a_smaller_plan(load: Load, folder: Path) -> None:
    pipeline = load(lora_dir=str(folder))
    expected = latents(pipeline, LoraChoice("style"))
    (sample,) = pipeline.begin(asked(pipeline, LoraChoice("style")))
    pipeline.step([sample])
    pipeline.replan()
    pipeline.step([sample])
    assert difference(sample.latents, expected) <= 1e-5


def test_the_card_names_them_and_pictures_tell_them(shelved: FluxPipeline) -> None:
    assert shelved.card.loras == ("light", "style", "words")
    (image,) = shelved.run(asked(shelved, LoraChoice("style", 0.5)))
    assert b"style:0.5" in image.data
    with pytest.raises(InvalidRequest, match="no LoRA 'none' was loaded"):
        shelved.begin(asked(shelved, LoraChoice("none")))


def test_the_plan_keeps_room_for_them(tiny_checkpoint: MakeCheckpoint, folder: Path) -> None:
    plain = PipelineConfig(str(tiny_checkpoint("schnell")), device="cpu", dtype="float32")
    small = draw_blueprint(plain, lambda *_: None).sizes().small
    with_room = draw_blueprint(replace(plain, lora_dir=str(folder)), lambda *_: None).sizes().small
    largest = max(path.stat().st_size for path in folder.iterdir())
    assert 0.8 * largest < with_room - small <= largest


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loras": ("missing.safetensors",)}, "no LoRA file 'missing.safetensors'"),
        ({"loras": ("{folder}/style.safetensors:much",)}, "must be a number, got 'much'"),
        ({"loras": ("{folder}/style.safetensors:inf",)}, "must be a number"),
        ({"lora_dir": "{folder}/missing"}, "cannot be read"),
        ({"lora_dir": "{folder}", "compile": True}, "--compile and --lora-dir exclude each other"),
    ],
)
def test_wrong_options_are_told(load: Load, folder: Path, options: dict[str, object], says: str) -> None:
    def filled(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(text.format(folder=folder) for text in value)
        return value.format(folder=folder) if isinstance(value, str) else value

    with pytest.raises(ConfigError, match=says):
        load(**{name: filled(value) for name, value in options.items()})


def test_a_file_of_another_model_is_refused_by_its_keys(load: Load, tmp_path: Path) -> None:
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.ones(2, 2)}, tmp_path / "sdxl.safetensors")
    for options in ({"loras": (str(tmp_path / "sdxl.safetensors"),)}, {"lora_dir": str(tmp_path)}):
        with pytest.raises(CheckpointError, match="no place for: lora_unet_down_blocks_0"):
            load(**options)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_transformer_and_clip_change_as_in_diffusers(
    load: Load, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    """One file in diffusers' names for both, chosen by a request, against diffusers with peft."""
    prefixes = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.", "text_encoder.encoder.")
    tensors = low_rank(prefixes, "lora_A", "lora_B")
    save_file(tensors, tmp_path / "both.safetensors")
    theirs = DiffusersPipeline.from_pretrained(tiny_checkpoint("schnell"), dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(dict(tensors), adapter_name="both")
    theirs.set_adapters(["both"], [0.5])
    ours = load(lora_dir=str(tmp_path))
    request = asked(ours, LoraChoice("both", 0.5))
    expected = theirs(
        request.prompt,
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=0.0,
        max_sequence_length=request.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="latent",
    ).images[0]
    assert difference(latents(ours, LoraChoice("both", 0.5)), expected) <= 1e-4
    assert difference(latents(ours), expected) > 0.1

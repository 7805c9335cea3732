"""Made-up models: complete for diffusers too, the same from the same seed, and refused where there is no room."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer, T5Tokenizer

from fluxserve.errors import ConfigError
from fluxserve.models.flux1.sizes import TINY
from fluxserve.weights.checkpoint import open_checkpoint
from fluxserve.weights.synthetic import write as synthetic
from fluxserve.weights.synthetic.write import cached_model, write_model
from tests.conftest import MakeCheckpoint
from tests.weights.stored_files import DATA

SCRIPT = Path(__file__).parents[3] / "scripts" / "make_checkpoint.py"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("variant", ["schnell", "dev"])
def test_diffusers_draws_with_it(tiny_checkpoint: MakeCheckpoint, variant: str) -> None:
    folder = tiny_checkpoint(variant, "diffusers")
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.config.guidance_embeds == (variant == "dev")
    assert pipeline.scheduler.config.use_dynamic_shifting == (variant == "dev")
    images = pipeline(
        "A café, 漢字 🎉",
        height=64,
        width=32,
        num_inference_steps=2,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    assert images.shape == (1, 3, 64, 32)
    assert images.isfinite().all()
    assert images.std() > 0.05


def test_the_seed_alone_tells_the_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_model(tmp_path / name, "tiny", "schnell", "bfl", seed)
    a, b, c = (load_file(tmp_path / name / "flux1-schnell.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)


def test_large_networks_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_model(whole, "tiny", "schnell", "diffusers", seed=1)
    monkeypatch.setattr(synthetic, "SHARD_BYTES", 500_000)
    write_model(cut, "tiny", "schnell", "diffusers", seed=1)
    assert len(list((cut / "transformer").glob("diffusion_pytorch_model-0000?-of-0000?.safetensors"))) == 3
    one, other = (open_checkpoint(str(folder), None, lambda *_: None) for folder in (whole, cut))
    for key in one.readers["transformer"].keys():  # q, k and v may lie in different shards
        assert torch.equal(one.readers["transformer"].read(key), other.readers["transformer"].read(key))


def test_a_disk_without_room_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000_000_000))
    with pytest.raises(ConfigError, match=r"takes 33\.\d GB, the disk has 30\.0 GB free"):
        write_model(tmp_path / "full", "full", "schnell", "diffusers", seed=0)
    assert list((tmp_path / "full").iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty"):
        write_model(tmp_path, "tiny", "schnell", "bfl", seed=0)
    assert (tmp_path / "mine").read_text() == "precious"


def test_the_script_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    options = ["--size", "tiny", "--variant", "dev", "--layout", "bfl", "--seed", "4"]
    command = [sys.executable, str(SCRIPT), *options, str(tmp_path / "model")]
    subprocess.run(command, check=True, timeout=120)
    opened = open_checkpoint(str(tmp_path / "model"), None, lambda *_: None)
    assert opened.variant.name == "dev"
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (again.returncode, "is not empty" in again.stderr) == (78, True)


def test_the_untrained_demo_is_made_once(tmp_path: Path) -> None:
    first = cached_model(tmp_path, "demo-untrained")
    made = (first / "model_index.json").stat().st_mtime_ns
    assert cached_model(tmp_path, "demo-untrained") == first
    assert (first / "model_index.json").stat().st_mtime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize(
    "text", ["", " ", "a cat", "É ñ ü", "漢字かな", "🎉👩‍👩‍👧", "\u200bzero", "<|endoftext|> </s>", "x" * 5000]
)
def test_no_text_makes_the_tokenizers_fail(tiny_checkpoint: MakeCheckpoint, text: str) -> None:
    folder = tiny_checkpoint("schnell", "diffusers")
    clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5 = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    clip_ids = clip(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
    t5_ids = t5(text, padding="max_length", max_length=64, truncation=True)["input_ids"]
    assert (len(clip_ids), clip_ids[0]) == (77, 49406)
    assert 49407 in clip_ids
    assert (len(t5_ids), 1 in t5_ids) == (64, True)
    assert max(clip_ids) < TINY.clip.vocab_size
    assert max(t5_ids) < TINY.t5.vocab_size


def test_the_toy_tokenizers_give_special_tokens_their_published_ids(tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint("schnell", "diffusers")
    for toy, real in (
        (CLIPTokenizer.from_pretrained(folder / "tokenizer"), CLIPTokenizer.from_pretrained(DATA / "tokenizers/clip")),
        (T5Tokenizer.from_pretrained(folder / "tokenizer_2"), T5Tokenizer.from_pretrained(DATA / "tokenizers/t5")),
    ):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "model_max_length"):
            assert getattr(toy, name, None) == getattr(real, name, None)

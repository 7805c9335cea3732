"""The commands, as people type them: real processes, real files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from fluxserve.cli import app
from fluxserve.cli.options import settings_of
from fluxserve.config import PipelineConfig
from tests.conftest import MakeCheckpoint
from tests.loras import write_loras
from tests.models.sketches import sketch
from tests.pipeline.test_redux import write_redux

PNG = b"\x89PNG\r\n\x1a\n"


def fluxserve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fluxserve", *arguments]
    environment = os.environ | {"COLUMNS": "200"} | variables
    return subprocess.run(command, capture_output=True, timeout=300, env=environment)


def test_generate_writes_numbered_pictures_that_tell_their_seeds(tmp_path: Path) -> None:
    output = tmp_path / "cat.png"
    result = fluxserve("generate", "a cat", "-o", str(output), "--n", "2", "--seed", "5", "--size", "64x96")
    assert result.returncode == 0, result.stderr.decode()
    for number, seed in ((1, "5"), (2, "6")):
        picture = Image.open(tmp_path / f"cat-{number}.png")
        assert picture.size == (64, 96)
        told = picture.text  # type: ignore[attr-defined]
        assert (told["seed"], told["prompt"], told["size"]) == (seed, "a cat", "64x96")
        assert {"steps", "guidance", "model"} <= told.keys()


def test_generate_writes_a_png_to_stdout_and_nothing_else() -> None:
    result = fluxserve("generate", "a cat", "-o", "-", "--seed", "5", "--size", "64x64")
    assert result.stdout.startswith(PNG)
    assert Image.open(io.BytesIO(result.stdout)).size == (64, 64)


def test_generate_edits_and_varies_pictures(tmp_path: Path) -> None:
    common = ["--model", "demo-untrained", "--seed", "5", "--steps", "4"]
    first = tmp_path / "first.png"
    assert fluxserve("generate", "a cat", *common, "--size", "96x64", "-o", str(first)).returncode == 0
    drawn = [first]
    for prompt, name, extra in (
        ("a dog", "edit.jpg", ["--strength", "0.5", "--compression", "50"]),
        ("", "variation.webp", []),
        ("a dog", "secret.png", ["--no-metadata"]),
    ):
        drawn.append(tmp_path / name)
        result = fluxserve("generate", prompt, *common, "-i", str(first), *extra, "-o", str(drawn[-1]))
        assert result.returncode == 0, result.stderr.decode()
    pictures = [Image.open(io.BytesIO(path.read_bytes())) for path in drawn]
    assert [picture.format for picture in pictures] == ["PNG", "JPEG", "WEBP", "PNG"]
    assert {picture.size for picture in pictures} == {(96, 64)}, "the picture's own size"
    assert [picture.getexif()[0x0131] for picture in pictures[1:3]] == ["AI generated;img2img;flux"] * 2
    assert (pictures[0].info["Software"], pictures[3].info) == ("AI generated;txt2img;flux", {})


def test_generate_makes_maps_and_weighs_pictures(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    photo, navy = tmp_path / "photo.png", tmp_path / "navy.png"
    sketch(96, 64).save(photo)
    Image.new("RGB", (96, 64), "navy").save(navy)
    common = ["generate", "a cat", "--dtype", "float32", "--size", "64x64", "--seed", "5", "--steps", "2", "-o", "-"]
    canny = [*common, "-m", str(tiny_checkpoint("canny")), "-i", str(photo)]
    weighed = [*common, "-m", str(tiny_checkpoint("dev")), "--redux", str(write_redux(tmp_path / "redux"))]
    weighed += ["-i", str(photo), "-i", str(navy)]
    for asked, ways in ((canny, ([], ["--control", "canny"])), (weighed, (weights(1, 0.2), weights(0.2, 1)))):
        drawn = []
        for way in ways:
            result = fluxserve(*asked, *way)
            assert result.returncode == 0, result.stderr
            drawn.append(np.asarray(Image.open(io.BytesIO(result.stdout)), dtype=int))
        assert np.abs(drawn[0] - drawn[1]).max() > 2
    for refused, param in (([*canny, "--control", "depth"], b"canny"), ([*weighed, *weights(1)], b"redux must")):
        result = fluxserve(*refused)
        assert result.returncode != 0
        assert param in result.stderr


def weights(*given: float) -> list[str]:
    return [word for weight in given for word in ("--redux-weight", str(weight))]


@pytest.mark.fault(153)
@pytest.mark.parametrize("variant", ["fill", "canny"])
def test_bench_says_what_a_model_that_draws_from_a_picture_lacks(tiny_checkpoint: MakeCheckpoint, variant: str) -> None:
    result = fluxserve("bench", str(tiny_checkpoint(variant)), "--steps", "1", "--repeats", "1")
    assert result.returncode == 2, result.stderr
    assert f"image is required: {variant}".encode() in result.stderr
    assert b"Traceback" not in result.stderr


def test_generate_draws_by_several_pictures(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    common = ["--model", str(tiny_checkpoint("klein")), "--device", "cpu", "--seed", "5", "--no-metadata"]
    for name, size, color in (("a.png", (100, 80), "red"), ("b.png", (64, 96), "blue")):
        Image.new("RGB", size, color).save(tmp_path / name)
    drawn = []
    for names in (["a.png", "b.png"], ["b.png", "a.png"]):
        given = [word for name in names for word in ("-i", str(tmp_path / name))]
        result = fluxserve("generate", "a cat", *common, *given, "--size", "64x64", "-o", str(tmp_path / "out.png"))
        assert result.returncode == 0, result.stderr.decode()
        drawn.append((tmp_path / "out.png").read_bytes())
    assert drawn[0] != drawn[1]
    many = ["-i", str(tmp_path / "a.png")] * 3
    refused = fluxserve("generate", "a cat", *common, *many, "--max-input-images", "2", "-o", str(tmp_path / "no.png"))
    assert refused.returncode == 2
    assert b"at most 2 images (--max-input-images), got 3" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a cat", "--size", "100x100"], 2, "the nearest is 96x96"),
        (["a cat", "--size", "big"], 2, "size must be WIDTHxHEIGHT"),
        (["a cat", "-o", "cat.bmp"], 2, "output must end in"),
        (["a cat", "-o", "no/such/folder/cat.png"], 2, "existing folder"),
        (["a cat", "-o", "-", "--n", "2"], 2, "n must be 1"),
        (["a cat", "--size", "72x512"], 2, "the nearest is 80x512"),
        (["a cat", "--n", "11"], 2, "n must be an integer from 1 to 10, got 11"),
        (["a cat", "--seed", "-1"], 2, "seed must be an integer from 0"),
        (["a cat", "--true-cfg-scale", "nan"], 2, "true_cfg_scale must be a number from 0 to 20"),
        (["a cat", "--image", "no-such.png"], 2, "image cannot be read from 'no-such.png'"),
        (["a cat", "--image", __file__], 2, "image must be a complete PNG, JPEG or WebP file"),
        (["a cat", "--mask", __file__], 2, "mask needs an image"),
        (["a cat", "--mask-mode", "white"], 2, "mask_mode white needs a mask"),
        (["a cat", "--mask-mode", "red"], 2, "'red' is not one of 'alpha', 'white'"),
        (["a cat", "--format", "gif", "-o", "-"], 2, "format must be png, jpeg or webp"),
        (["a cat", "--format", "webp", "-o", "cat.png"], 2, "disagree"),
        ([""], 2, "prompt must not be blank"),
        (["a cat", "--model", "no-such-model"], 78, "no model named 'no-such-model'"),
        (["a cat", "--device", "toaster"], 78, "device must be"),
        (["a cat", "--dtype", "int4"], 2, "'int4' is not one of"),
        (["a cat", "--memory-budget", "much"], 2, "'--memory-budget': a size such as 8GiB or 500MB is wanted"),
        (["a cat", "--colour", "red"], 2, "No such option: --colour"),
        (["a cat", "--model", "black-forest-labs/FLUX.1-schnell"], 69, "HF_HUB_OFFLINE"),
    ],
)
def test_mistakes_are_told_in_a_line_and_an_exit_code(arguments: list[str], code: int, says: str) -> None:
    result = fluxserve("generate", *arguments, HF_HUB_OFFLINE="1")
    assert result.returncode == code
    message = result.stderr.decode()
    assert says in message
    assert "Traceback" not in message


@pytest.mark.parametrize("command", [["generate", "a cat"], ["doctor"], ["bench"], ["serve"]])
def test_a_bad_variable_is_told_alike_by_every_command(command: list[str]) -> None:
    result = fluxserve(*command, FLUXSERVE_COMPILE="perhaps")
    assert (result.returncode, result.stdout) == (78, b"")
    assert result.stderr.decode().startswith("FLUXSERVE_COMPILE: true or false is wanted")
    assert result.stderr.count(b"\n") == 1


def test_a_damaged_checkpoint_is_named(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint(), folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = fluxserve("generate", "a cat", "--model", str(folder))
    assert result.returncode == 65
    assert str(weights) in result.stderr.decode().replace("\n", "")


def test_the_dev_licence_is_shown(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    model = tiny_checkpoint("dev", "bfl") / "flux1-dev.safetensors"
    output = str(tmp_path / "cat.png")
    result = fluxserve("generate", "a cat", "-m", str(model), "-o", output, "--size", "64x64", "--steps", "1")
    assert result.returncode == 0
    assert "Non-Commercial License" in result.stderr.decode()


def test_generate_takes_loras_with_their_scales(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    style = write_loras(tmp_path) / "style.safetensors"
    common = ["generate", "a cat", "-m", str(tiny_checkpoint()), "-o", "-", "--seed", "5", "--size", "64x64"]
    plain, strong = fluxserve(*common), fluxserve(*common, "--lora", f"{style}:2")
    assert strong.returncode == 0, strong.stderr.decode()
    assert plain.stdout != strong.stdout
    missing = fluxserve(*common, "--lora", "missing.safetensors")
    assert (missing.returncode, b"no LoRA file" in missing.stderr) == (78, True)


@pytest.mark.parametrize("command", ["generate", "bench", "doctor"])
def test_whatever_loads_a_model_takes_the_options_of_loading(command: str) -> None:
    taken = {parameter.name for parameter in get_command(app).commands[command].params}  # type: ignore[attr-defined]
    assert {setting.name for setting in settings_of(PipelineConfig)} <= taken


def test_doctor_counts_loras_in(tiny_checkpoint: MakeCheckpoint) -> None:
    missing = fluxserve("doctor", str(tiny_checkpoint()), "--lora", "missing.safetensors")
    assert (missing.returncode, b"no LoRA file" in missing.stderr) == (78, True)


def test_doctor_says_what_is_here_and_what_will_be_used() -> None:
    result = fluxserve("doctor")
    assert result.returncode == 0
    rows = dict(line.split(None, 1) for line in result.stdout.decode().splitlines() if line[:1].strip())
    assert {"machine", "memory", "torch", "device", "dtype", "model", "weights", "budget", "resident"} <= rows.keys()
    assert rows["compute"].strip() == "exact"


def test_doctor_fetches_nothing() -> None:
    result = fluxserve("doctor", "black-forest-labs/FLUX.1-dev", HF_ENDPOINT="http://127.0.0.1:1")
    assert result.returncode == 0
    assert "is not in the cache" in result.stdout.decode()


def test_doctor_says_what_a_file_is(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = tiny_checkpoint("dev", "bfl")
    model = fluxserve("doctor", str(folder / "flux1-dev.safetensors"))
    assert model.returncode == 0, model.stderr
    assert "FLUX.1 transformer, dev" in model.stdout.decode()
    assert "budget" in model.stdout.decode()
    part = fluxserve("doctor", str(folder / "ae.safetensors"))
    assert (part.returncode, "FLUX.1 autoencoder" in part.stdout.decode()) == (0, True)
    assert "budget" not in part.stdout.decode()
    pickle = tmp_path / "flux1-dev.pt"
    pickle.write_bytes(b"PK\x03\x04")
    refused = fluxserve("doctor", str(pickle))
    assert (refused.returncode, "convert it to safetensors" in refused.stderr.decode()) == (65, True)


def test_models_lists_what_can_be_named() -> None:
    result = fluxserve("models")
    words = result.stdout.decode().split()
    assert {"black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev", "demo"} <= set(words)


def test_bench_times_every_stage_and_http_whatever_is_set_for_a_server() -> None:
    command = ["bench", "demo-untrained", "--dtype", "float32", "--size", "64x64", "--steps", "1", "--repeats", "1"]
    result = fluxserve(*command, FLUXSERVE_API_KEY="secret")
    assert result.returncode == 0, result.stderr.decode()
    report = json.loads(result.stdout)
    assert report["stages_ms"].keys() == {"text", "step", "decode", "encode"}
    assert all(stage["median"] > 0 for stage in report["stages_ms"].values())
    assert report["http_ms"]["wall"]["median"] >= report["http_ms"]["overhead"]["median"] > 0

"""`fluxserve pull`: real processes and the real Hub client, against a Hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxserve.weights.hub.resume import LEAST_BYTES
from tests.conftest import MakeCheckpoint
from tests.weights.hub.hub_stub import StubHub, serve_hub

SCHNELL = "black-forest-labs/FLUX.1-schnell"
PREFIXES = {
    "flux1-schnell": "model.diffusion_model.",
    "ae": "vae.",
    "t5xxl": "text_encoders.t5xxl.transformer.",
    "clip_l": "text_encoders.clip_l.transformer.",
}

COMMAND = """
import json, shutil, sys
from fluxserve.cli import app
from dataclasses import replace
from fluxserve.models.flux1.variants import VARIANTS
from fluxserve.models.variant import UngatedFile

replaced = json.loads(sys.argv.pop(1))
files = tuple(UngatedFile(*file) for file in replaced["files"])
VARIANTS["schnell"] = replace(VARIANTS["schnell"], ungated=files)
if replaced["free"] is not None:
    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=replaced["free"])
app()
"""
"""The command with small files in the place of the published ones, whose hashes no test can meet."""

Ungated = list[tuple[str, str, str, str | None]]


def fluxserve(
    hub_url: str, home: Path, *arguments: str, ungated: Ungated | None = None, free: int | None = None
) -> subprocess.CompletedProcess[str]:
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "200"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "FLUXSERVE_"))}
    replaced = json.dumps({"files": ungated or [], "free": free})
    command = [sys.executable, "-c", COMMAND, replaced, *arguments]
    return subprocess.run(command, env=clean | settings, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def copies(published_widths: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An all-in-one file and the tokenizers, as they lie in repositories that need no account."""
    folder = tmp_path_factory.mktemp("copies")
    whole = {
        prefix + key: tensor
        for name, prefix in PREFIXES.items()
        for key, tensor in load_file(published_widths / f"{name}.safetensors").items()
    }
    save_file(whole, folder / "all.safetensors")
    for theirs, ours in (("tokenizer", "clip.json"), ("tokenizer_2", "t5.json")):
        (folder / ours).write_bytes((published_widths / theirs / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture
def ungated(copies: Path) -> Ungated:
    pinned = hashlib.sha256((copies / "all.safetensors").read_bytes()).hexdigest()
    return [
        ("a/copies", "all.safetensors", "all.safetensors", pinned),
        ("a/copies", "clip.json", "tokenizer/tokenizer.json", None),
        ("a/copies", "t5.json", "tokenizer_2/tokenizer.json", None),
    ]


def gated_hub(copies: Path) -> StubHub:
    return StubHub({SCHNELL: copies, "a/copies": copies}, {SCHNELL: (401, "GatedRepo")})


def test_schnell_without_a_token_is_taken_from_ungated_copies_and_served(
    copies: Path, ungated: Ungated, tmp_path: Path
) -> None:
    (copies / "model_index.json").write_text("{}")
    (copies / "transformer").mkdir(exist_ok=True)
    (copies / "transformer" / "config.json").write_text("{}")
    hub = gated_hub(copies)
    home, output = tmp_path / "home", tmp_path / "a.png"
    with serve_hub(hub):
        listed = fluxserve(hub.url, home, "pull", "schnell", "--dry-run", ungated=ungated)
        assert listed.returncode == 0, listed.stderr
        assert hub.fetched == []
        assert "FLUX.1-schnell: Apache-2.0" in listed.stderr
        pulled = fluxserve(hub.url, home, "pull", "schnell", ungated=ungated)
        assert pulled.returncode == 0, pulled.stderr
        fetched = list(hub.fetched)
    assert "is gated" in listed.stderr
    assert "copies that need no account" in pulled.stderr
    assert f"{(copies / 'all.safetensors').stat().st_size:,}" in listed.stdout
    assert {"free", "disk", "enough", "a/copies/all.safetensors"} <= set(listed.stdout.split())
    assert sorted(fetched) == ["all.safetensors", "clip.json", "t5.json"]
    drawn = fluxserve(
        hub.url, home, "generate", "a cat", "-m", "schnell", "-o", str(output), "--size", "64x64", ungated=ungated
    )  # the Hub is gone by now
    assert drawn.returncode == 0, drawn.stderr
    picture = Image.open(output)
    assert (picture.size, picture.text["model"]) == ((64, 64), SCHNELL)  # type: ignore[attr-defined]


def test_what_is_here_is_neither_fetched_nor_read_again(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    hub = StubHub({"some/flux": tiny_checkpoint("schnell", "diffusers")})
    with serve_hub(hub):
        assert fluxserve(hub.url, tmp_path, "pull", "some/flux").returncode == 0
        fetched = list(hub.fetched)
        (manifest,) = tmp_path.rglob("verified.json")
        checked = manifest.stat().st_mtime_ns
        known = json.loads(manifest.read_text())
        again = fluxserve(hub.url, tmp_path, "pull", "some/flux")
        listed = fluxserve(hub.url, tmp_path, "pull", "some/flux", "--dry-run")
    assert again.returncode == 0
    assert hub.fetched == fetched
    assert manifest.stat().st_mtime_ns == checked
    assert len(known) == len(set(fetched))
    assert "no" not in [line.split()[-1] for line in listed.stdout.splitlines()]


def test_a_large_file_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    content = hashlib.shake_128(b"weights").digest(LEAST_BYTES + 1)
    (folder / "large.safetensors").write_bytes(content)
    here = hashlib.sha256(content).hexdigest()
    blobs = tmp_path / "hub" / "models--a--large" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{here}.part"
    hub = StubHub({"a/large": folder})
    command = ("pull", "a/large/large.safetensors")
    with serve_hub(hub):
        part.write_bytes(content[:1_000_000])
        assert fluxserve(hub.url, tmp_path, *command).returncode == 0
        assert (hub.ranges, (blobs / here).read_bytes() == content) == (["bytes=1000000-"], True)
        shutil.rmtree(tmp_path / "hub")
        blobs.mkdir(parents=True)
        part.write_bytes(bytes(1_000_000))  # of something else
        spoilt = fluxserve(hub.url, tmp_path, *command)
        assert (spoilt.returncode, "is damaged" in spoilt.stderr) == (69, True)
        assert fluxserve(hub.url, tmp_path, *command).returncode == 0
    assert (blobs / here).read_bytes() == content


def test_a_damaged_file_is_deleted_and_fetched_anew(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    hub = StubHub({"some/flux": tiny_checkpoint("schnell", "bfl")})
    name = "some/flux/ae.safetensors"
    with serve_hub(hub):
        assert fluxserve(hub.url, tmp_path, "pull", name).returncode == 0
        (link,) = tmp_path.rglob("ae.safetensors")
        blob = link.resolve()
        whole = blob.read_bytes()
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        damaged = fluxserve(hub.url, tmp_path, "pull", name)
        assert damaged.returncode == 69
        assert len(damaged.stderr.strip().splitlines()) == 4
        assert "ae.safetensors: is damaged" in damaged.stderr
        assert fluxserve(hub.url, tmp_path, "pull", name).returncode == 0
    assert blob.read_bytes() == whole
    assert hub.fetched == ["ae.safetensors"] * 2


def test_copies_that_are_not_the_pinned_ones_are_refused(copies: Path, ungated: Ungated, tmp_path: Path) -> None:
    other = [(*ungated[0][:3], "0" * 64), *ungated[1:]]
    hub = gated_hub(copies)
    with serve_hub(hub):
        refused = fluxserve(hub.url, tmp_path, "pull", "schnell", ungated=other)
    assert refused.returncode == 69
    assert "expected 0000" in refused.stderr
    assert not list(tmp_path.rglob("black-forest-labs--FLUX.1-schnell"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a/missing"], 69, "no such repository"),
        (["a/gated"], 69, "HF_TOKEN"),
        (["a/flux/none.gguf"], 69, "no such file"),
        (["demo"], 78, "no model named 'demo'"),
    ],
)
def test_what_cannot_be_pulled_is_told_plainly(
    tiny_checkpoint: MakeCheckpoint, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    folder = tiny_checkpoint("schnell", "diffusers")
    hub = StubHub({"a/flux": folder, "a/gated": folder}, {"a/gated": (403, "GatedRepo")})
    with serve_hub(hub):
        refused = fluxserve(hub.url, tmp_path, "pull", *arguments)
    assert (refused.returncode, hub.fetched) == (code, [])
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    hub = StubHub({"a/flux": tiny_checkpoint("schnell", "diffusers")})
    with serve_hub(hub):
        refused = fluxserve(hub.url, tmp_path, "pull", "a/flux", free=1000)
        listed = fluxserve(hub.url, tmp_path, "pull", "a/flux", "--dry-run", free=1000)
    assert (refused.returncode, hub.fetched) == (69, [])
    assert len(refused.stderr.strip().splitlines()) == 4
    assert "1,000 free" in refused.stderr
    assert "too little" in listed.stdout

"""--verify: damage that no header tells of is found where the SHA-256 is known, and what is right is read once."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxserve.config import Verify
from fluxserve.errors import CheckpointError
from fluxserve.weights import verify
from fluxserve.weights.verify import SUMS, cached_hash, check_files
from tests.conftest import MakeCheckpoint
from tests.faults import FAULTS
from tests.server import running
from tests.server.conftest import StartServer, start_server
from tests.weights.stored_files import flip_a_bit, open_quietly, write_sums

__all__ = ["start_server"]

Check = Callable[..., list[str]]


@pytest.fixture
def folder(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A model to damage, with a SHA256SUMS."""
    return write_sums(Path(shutil.copytree(tiny_checkpoint(), tmp_path / "model")))


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """check(path, ..., verify="auto") -> the names of the files that were read, with a manifest of this test alone."""
    monkeypatch.setattr(verify, "manifest_path", lambda: tmp_path / "cache" / "verified.json")

    def run(*paths: Path, verify: Verify = "auto") -> list[str]:
        stages: dict[str, tuple[int, int]] = {}
        check_files(paths, verify, lambda stage, done, total: stages.update({stage: (done, total)}))
        assert all(done == total for done, total in stages.values())
        return [stage.removeprefix("checking ") for stage in stages]

    return run


def test_a_checkpoint_names_its_files(folder: Path) -> None:
    """Each of its weights and of its tokenizers, once."""
    names = {str(path.relative_to(folder)) for path in open_quietly(folder).files}
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")}
    weights |= {f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2")}
    tokenizers = {f"{part}/{name}" for part in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES}
    assert names == weights | tokenizers


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def test_what_is_right_is_read_once(folder: Path, check: Check) -> None:
    files = open_quietly(folder).files
    assert len(check(*files)) == len({path.name for path in files})
    assert check(*files) == []
    os.utime(files[0])
    assert check(*files) == [files[0].name]
    assert len(check(*files, verify="always")) == len({path.name for path in files})


@pytest.mark.fault(49)
@pytest.mark.parametrize("name", ["transformer/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_refused_by_name_and_nothing_is_deleted(folder: Path, check: Check, name: str) -> None:
    path = folder / name
    flip_a_bit(path)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"is damaged(.|\n)*--verify off") as refused:
            check(path)
        assert str(path) in refused.value.message
    assert path.exists()
    assert check(path, verify="off") == []


@pytest.mark.fault(49)
def test_damage_that_no_clock_tells_of_is_found_by_always(folder: Path, check: Check) -> None:
    """Bits that rot change neither size nor time; auto then reads the file again, too."""
    path = open_quietly(folder).files[0]
    check(path)
    flip_a_bit(path, untold=True)
    assert check(path) == []
    for mode in ("always", "auto"):
        with pytest.raises(CheckpointError, match="is damaged"):
            check(path, verify=mode)


@pytest.mark.fault(49)
def test_the_hubs_cache_tells_by_its_names(tmp_path: Path, check: Check) -> None:
    """It keeps a large file under its SHA-256, and a link to it under the file's name."""
    content = b"weights" * 1000
    blob, link = tmp_path / hashlib.sha256(content).hexdigest(), tmp_path / "ae.safetensors"
    blob.write_bytes(content)
    link.symlink_to(blob)
    assert (cached_hash(link), cached_hash(tmp_path / "small.json")) == (blob.name, None)
    assert check(link) == ["ae.safetensors"]
    flip_a_bit(blob)
    with pytest.raises(CheckpointError, match=r"ae\.safetensors: is damaged"):
        check(link)


def test_files_of_which_nobody_says_anything_are_not_read(tmp_path: Path, check: Check) -> None:
    path = tmp_path / "ae.safetensors"
    path.write_bytes(b"weights")
    assert check(path, verify="always") == []
    (tmp_path / SUMS).write_text(f"# of another\n{'0' * 64}  other.safetensors\n{'0' * 63}  ae.safetensors\n")
    assert check(path, verify="always") == []


@pytest.mark.parametrize("line", ["{}  ae.safetensors", "{} *ae.safetensors", "{}  ./ae.safetensors"])
def test_sums_are_read_as_sha256sum_writes_them(tmp_path: Path, check: Check, line: str) -> None:
    path = tmp_path / "ae.safetensors"
    path.write_bytes(b"weights")
    (tmp_path / SUMS).write_text(line.format(hashlib.sha256(b"weights").hexdigest().upper()) + "\n")
    assert check(path) == ["ae.safetensors"]
    (tmp_path / SUMS).write_text(line.format("0" * 64) + "\n")
    with pytest.raises(CheckpointError, match="expected 0000"):
        check(path)


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(
    folder: Path, check: Check, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file in the folder's place")
    path = open_quietly(folder).files[0]
    assert check(path) == check(path) == [path.name]
    assert "cannot be written" in caplog.text


@pytest.mark.fault(49)
def test_the_server_reads_once_refuses_damage_by_name_and_serves_it_if_told_to(
    folder: Path, start_server: StartServer, check: Check, tmp_path: Path
) -> None:
    alone = {"HF_ASSETS_CACHE": str(tmp_path / "assets")}
    check(*open_quietly(folder).files)
    (tmp_path / "assets").mkdir()
    (tmp_path / "cache").rename(tmp_path / "assets" / "fluxserve")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    flip_a_bit(path, untold=True)

    def start(*flags: str, ready: bool) -> running.Server:
        return start_server(str(folder), *flags, worker=running.REAL_WORKER, ready=ready, variables=alone)

    unread = start(ready=True)
    assert "SHA-256 known, and right, for 8 of 8 files" in unread.log.read_text()
    assert unread.stop() == 0
    refusing = start("--verify", "always", ready=False)
    assert refusing.process.wait(60) in FAULTS[49].exit_codes
    assert refusing.log.read_text().count(f"{path}: is damaged") == 1
    told = start("--verify", "off", ready=True)
    assert told.generate(size="64x64", steps=1).status_code == 200

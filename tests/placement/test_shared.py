"""What several processes hold together: each weight once, never half of one, never that of another file."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fluxserve.completion import complete_request
from fluxserve.config import PipelineConfig
from fluxserve.engine.crew import shared_memory
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.shared import SharedMemory, SharedWeights, origin_of
from tests.conftest import MakeCheckpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files in memory are Linux's")

DIES_HALFWAY = """
import os, signal, sys
from fluxserve.placement.shared import SharedMemory
memory = SharedMemory(int(sys.argv[1]))
with memory.alone():
    memory.add("a", 5000, lambda buffer: buffer.fill_(3))
with memory.alone():
    memory.add("b", 5000, lambda buffer: (buffer[:2000].fill_(9), os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.fixture
def descriptor() -> Iterator[int]:
    found = shared_memory()
    assert found is not None
    yield found
    os.close(found)


def draw(config: PipelineConfig, descriptor: int | None) -> bytes:
    memory = None if descriptor is None else SharedMemory(descriptor)
    pipeline = FluxPipeline.load(config, lambda *_: None, memory)
    request = complete_request(pipeline.card, "a cat", width=64, height=64, seed=5)
    return pipeline.run(request)[0].data


@pytest.mark.fault(133)
def test_a_process_that_dies_halfway_leaves_nothing_half_done(descriptor: int) -> None:
    command = [sys.executable, "-c", DIES_HALFWAY, str(descriptor)]
    assert subprocess.run(command, pass_fds=[descriptor]).returncode == -signal.SIGKILL
    memory = SharedMemory(descriptor)
    with memory.alone():
        found = memory.find("a")
        assert found is not None
        assert (found == 3).all()
        assert memory.find("b") is None
        memory.add("b", 5000, lambda buffer: buffer.fill_(4))
    other = SharedMemory(descriptor).find("b")
    assert other is not None
    assert (other == 4).all()
    assert memory.nbytes == 4 * mmap.PAGESIZE


def test_what_one_writes_by_mistake_nobody_else_sees(descriptor: int) -> None:
    memory = SharedMemory(descriptor)
    mine = memory.add("a", 100, lambda buffer: buffer.fill_(1))
    assert mine is not None
    mine.fill_(7)
    theirs = SharedMemory(descriptor).find("a")
    assert theirs is not None
    assert (theirs == 1).all()


def test_a_directory_that_is_full_shares_no_more(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxserve.placement.shared._MOST_ENTRIES", 1)
    weights, made = SharedWeights(SharedMemory(descriptor), "origin"), torch.ones(3)
    for key in ("first", "second"):
        assert weights.hold("net", key, made.to("meta"), lambda: made).equal(made)
    assert weights.nbytes == mmap.PAGESIZE


def test_other_files_are_other_weights(descriptor: int, tmp_path: Path) -> None:
    file, meta = tmp_path / "weights", torch.empty(2, device="meta")
    values = []
    for content, settings in (("a", ()), ("a", ("lora",)), ("bb", ())):
        file.write_text(content)
        weights = SharedWeights(SharedMemory(descriptor), origin_of([file], settings))
        values.append(weights.hold("net", "key", meta, lambda: torch.full((2,), float(len(values)))))
        again = weights.hold("net", "key", meta, lambda: pytest.fail("it is there"))
        assert isinstance(again, torch.Tensor)
        assert again.equal(values[-1])
    assert [float(value[0]) for value in values] == [0, 1, 2]
    assert float(weights.hold("other net", "key", meta, lambda: torch.full((2,), 5.0))[0]) == 5


@pytest.mark.parametrize("layout", ["diffusers", "bfl"])
@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"dtype": "float32"}, {"storage": "int8"}])
def test_pictures_are_the_same_and_the_second_makes_nothing(
    tiny_checkpoint: MakeCheckpoint, descriptor: int, layout: str, settings: dict[str, str]
) -> None:
    config = PipelineConfig(str(tiny_checkpoint("schnell", layout)), device="cpu", offload="none", **settings)  # type: ignore[arg-type]
    alone, first = draw(config, None), draw(config, descriptor)
    made = SharedMemory(descriptor).nbytes
    assert draw(config, descriptor) == first == alone
    assert made > 0
    assert SharedMemory(descriptor).nbytes == made

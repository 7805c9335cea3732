"""What the machine is said to have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fluxserve.errors import DeviceError
from fluxserve.placement.device import available_bytes, choose_device, choose_dtype, control_group_room


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    assert control_group_room(tmp_path) is None
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert control_group_room(tmp_path) is None
    (tmp_path / "memory.max").write_text("8000\n")
    assert control_group_room(tmp_path) == 5000
    (tmp_path / "memory.max").write_text("2000\n")
    assert control_group_room(tmp_path) == 0


def test_there_is_memory_on_this_machine() -> None:
    assert 2**28 < available_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("name", ["toaster", "cuda:99", ""])
def test_devices_that_are_not_there_are_refused_by_name(name: str) -> None:
    with pytest.raises(DeviceError, match="device must be auto, cpu"):
        choose_device(name)


@pytest.mark.parametrize("has_unit", [True, False])
def test_bfloat16_is_chosen_only_where_the_cpu_computes_in_it(monkeypatch: pytest.MonkeyPatch, has_unit: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_unit})
    choice = choose_dtype("auto", torch.device("cpu"))
    assert choice.dtype == (torch.bfloat16 if has_unit else torch.float32)
    assert "bfloat16" in choice.reason
    assert choose_dtype("float32", torch.device("cpu")).dtype == torch.float32

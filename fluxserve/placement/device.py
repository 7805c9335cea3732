"""Which device and dtype to use, and how much memory it has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from fluxserve.config import Compute, Dtype
from fluxserve.errors import DeviceError

CONTROL_GROUP = Path("/sys/fs/cgroup")
GPU_BATCH = 4


@dataclass(frozen=True)
class DtypeChoice:
    """The compute dtype, and why in a few words."""

    dtype: torch.dtype
    reason: str


def choose_device(name: str) -> torch.device:
    """auto: the first CUDA device, else MPS, else the CPU.

    Raises:
        DeviceError: torch does not see the device.
    """
    if name == "auto":
        accelerators = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        return torch.device(next((kind for kind, there in accelerators if there), "cpu"))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"device must be auto, cpu, cuda, cuda:N or mps; torch cannot use {name!r} here: {_first_line(error)}"
        ) from error
    return device


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def largest_batch(device: torch.device) -> int:
    """Samples worth stepping together, where there is room: a CPU is busy with one."""
    return 1 if device.type == "cpu" else GPU_BATCH


def choose_dtype(name: Dtype, device: torch.device) -> DtypeChoice:
    """auto: bfloat16 where the hardware computes in it, else float16 on CUDA, else float32.

    bfloat16 without hardware support is several times slower than float32 on a CPU.
    """
    if name != "auto":
        return DtypeChoice(getattr(torch, name), "as asked")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return DtypeChoice(torch.bfloat16, "this GPU computes in bfloat16")
        return DtypeChoice(torch.float16, "this GPU has no bfloat16")
    if device.type == "mps":
        if int(platform.mac_ver()[0].split(".")[0] or 0) >= 14:
            return DtypeChoice(torch.bfloat16, "macOS 14 or later")
        return DtypeChoice(torch.float32, "bfloat16 on MPS needs macOS 14")
    capabilities = torch.cpu.get_capabilities()
    units = [unit for unit in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16") if capabilities.get(unit)]
    if units:
        return DtypeChoice(torch.bfloat16, f"this CPU computes in bfloat16 ({units[0]})")
    return DtypeChoice(torch.float32, "this CPU has no bfloat16 unit")


def check_compute(compute: Compute, device: torch.device) -> None:
    """Raises: DeviceError: the device has no arithmetic of this kind, or it would not pay; names what it has."""
    allowed = ["exact", *(["int8"] if _has_int8(device) else []), *(["fp8"] if _has_fp8(device) else [])]
    if compute not in allowed:
        raise DeviceError(f"compute must be {' or '.join(allowed)} on this device ({device}), got {compute!r}")


def _has_int8(device: torch.device) -> bool:
    """Ampere and later GPUs; on a CPU units without which products of int8 saturate, or take longer than bfloat16's."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(unit) for unit in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _has_fp8(device: torch.device) -> bool:
    """Ada, Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def available_bytes(device: torch.device) -> int:
    """Memory that a model may take on the device now: free GPU memory, or what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return _available_ram()


def _available_ram() -> int:
    """The least of what the system calls available and what the process's control group still allows."""
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            fields = dict(line.split(":", 1) for line in meminfo)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: all of it, less nothing we could know
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = control_group_room(CONTROL_GROUP)
    return available if allowed is None else min(available, allowed)


def control_group_room(group: Path) -> int | None:
    """Bytes left under a version 2 memory limit, as containers have; None without one."""
    try:
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else max(int(limit) - int(used), 0)

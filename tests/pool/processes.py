"""What /proc tells of a server's processes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.server.running import Server

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
WEIGHTS_IN_MEMORY = "memfd:fluxserve-weights"


@dataclass
class Memory:
    """Of some mappings, in bytes. private: what no other process maps. shared: what another maps too."""

    private: int = 0
    shared: int = 0


def workers_of(server: Server) -> list[int]:
    """The processes that have a model, or are loading one, oldest first."""
    found = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in found}
    return [pid for pid, command in commands.items() if b"fluxserve.worker" in command]


def mapped(pid: int, name: str = "") -> Memory:
    """Of the mappings of files whose name contains `name`; of all, if it is empty."""
    memory, counts = Memory(), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := _MAPPING.fullmatch(line):
            counts = name in mapping[1]
        elif counts and line.startswith(("Private_", "Shared_")):
            size = int(line.split()[1]) * 1024
            memory.private += size if line.startswith("Private_") else 0
            memory.shared += size if line.startswith("Shared_") else 0
    return memory


def open_files(pid: int, name: str) -> int:
    """How many descriptors of files whose name contains `name` it has."""
    return sum(name in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())

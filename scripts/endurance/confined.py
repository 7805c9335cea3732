"""R21: the flood of R1, against a server that is nobody, may do nothing, and can write to one folder alone.

What the container does, without a container: another user, no capabilities, a read-only file system. Needs root.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scripts.endurance.flood import AUTH, KEY, send_mixed
from scripts.endurance.goals import Goal, Scale, none_of
from scripts.endurance.servers import lost, serving
from tests.server.running import Server

UID = 10001

CONFINE = """
set -e
folder=$1 interpreter=$2
shift 2
mount --bind "$folder" "$folder"
mount --bind "$interpreter" /mnt
mount -t tmpfs tmpfs /root
mkdir -p "$interpreter"
mount --bind /mnt "$interpreter"
mount -o remount,bind,ro /
cd "$folder"
export HOME="$folder" TMPDIR="$folder"
exec setpriv --reuid UID --regid UID --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
""".replace("UID", str(UID))
"""/root is closed to other users, and the interpreter may live there: it alone is put back."""


async def confined(scale: Scale) -> list[Goal]:
    """The whole part."""
    total, what = scale.of(10_000), f"R1 as uid {UID}, without capabilities, on a read-only file system"
    if os.geteuid() != 0:
        return [none_of("R21", what, ["not run: needs root"], total)]
    with serving("--api-key", KEY, "--max-queue", "128", under=_confinement) as server:
        server.http.headers.update(AUTH)
        wrong = [*_not_confined(server), *(await send_mixed(server, total))[0]]
        wrong += lost(server)
    return [none_of("R21", what, wrong, total)]


def _confinement(folder: Path) -> list[str]:
    os.chown(folder, UID, UID)
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONFINE, "sh", str(folder), sys.base_prefix]


def _not_confined(server: Server) -> list[str]:
    """What the server could do that it should not."""
    process, folder = Path(f"/proc/{server.process.pid}"), str(server.folder)
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    wanted = {"Uid": f"{UID}\t" * 3 + f"{UID}", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    wrong = [f"{name} is {status[name]}" for name, value in wanted.items() if status[name] != value]
    mounts = [line.split() for line in (process / "mounts").read_text().splitlines()]
    options = {mount[1]: mount[3].split(",") for mount in mounts}
    return wrong + [
        f"{path} has {options.get(path)}"
        for path, mode in (("/", "ro"), (folder, "rw"))
        if mode not in options.get(path, ())
    ]

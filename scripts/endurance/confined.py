"""R21: the flood of R1, against a server that is nobody, may do nothing, and can write to one folder alone.

What the container does, without a container: another user, no capabilities, a read-only file system. Needs root.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from scripts.endurance.flood import AUTH, KEY, send_mixed
from scripts.endurance.goals import Goal, Scale, none_of
from scripts.endurance.servers import unanswered
from tests.server import running

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
exec setpriv --reuid UID --regid UID --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs -- "$@"
""".replace("UID", str(UID))
"""/root is closed to other users, and the interpreter may live there: it alone is put back."""


async def confined(scale: Scale) -> list[Goal]:
    """The whole part; nothing where we are not root."""
    if os.geteuid() != 0:
        return []
    total = scale.of(10_000)
    folder = Path(tempfile.mkdtemp(prefix="fluxserve-soak-"))
    os.chown(folder, UID, UID)
    under = ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONFINE, "sh", str(folder), sys.base_prefix]
    flags, variables = ["--api-key", KEY, "--max-queue", "128"], {"HOME": str(folder), "TMPDIR": str(folder)}
    server = running.start(flags, folder, variables=variables, under=under).wait_ready()
    try:
        server.http.headers.update(AUTH)
        wrong = [*_not_confined(server.process.pid, folder), *(await send_mixed(server, total))[0]]
        if unanswered(server):
            wrong.append(f"{unanswered(server):g} not accounted for")
    finally:
        server.http.close()
        server.process.kill()
        server.process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    return [none_of("R21", f"R1 as uid {UID}, without capabilities, on a read-only file system", wrong, total)]


def _not_confined(pid: int, folder: Path) -> list[str]:
    """What the server could do that it should not."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    wanted = {"Uid": f"{UID}\t" * 3 + f"{UID}", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    wrong = [f"{name} is {status[name]}" for name, value in wanted.items() if status[name] != value]
    mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    options = {mount[1]: mount[3].split(",") for mount in mounts}
    return wrong + [
        f"{path} has {options.get(path)}"
        for path, mode in (("/", "ro"), (str(folder), "rw"))
        if mode not in options.get(path, ())
    ]

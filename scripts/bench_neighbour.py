"""A picture's time on a machine that is quiet, and beside a program that computes, against another commit's server.

Both servers draw the demo's pictures, in turns, round after round, quiet and busy. Goals: beside the neighbour at most
twice the quiet time; quiet at most three quarters of the other commit's; a large matrix product, with threads that
sleep as they wait, no slower than with threads that spin. Run it alone on a machine. Ends with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

from rich.console import Console
from rich.table import Table

from scripts.endurance.goals import Goal, at_most

ROOT = Path(__file__).parents[1]
BUSY_MOST, QUIET_MOST, PRODUCT_MOST = 2.0, 0.75, 1.1
NEIGHBOUR = "while True: pass"
PRODUCTS = """
import time, torch
a = torch.randn(3072, 3072)
a @ a
began = time.perf_counter()
for _ in range(6): a @ a
print(time.perf_counter() - began)
"""
_LISTENING = re.compile(r" on (http://\S+)/v1, loading")
_OPENER = build_opener(ProxyHandler({}))


@dataclass
class Drawer:
    """A server. seconds: of each picture, by whether the neighbour computed."""

    url: str
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    def draw(self, seed: int) -> float:
        body = json.dumps({"prompt": "a red circle", "seed": seed, "response_format": "b64_json"}).encode()
        request = Request(f"{self.url}/v1/images/generations", body, {"Content-Type": "application/json"})
        began = time.perf_counter()
        _OPENER.open(request, timeout=120).read()
        return time.perf_counter() - began

    def ready(self) -> bool:
        with suppress(OSError):
            return bool(_OPENER.open(f"{self.url}/readyz", timeout=10).status == 200)
        return False


@contextmanager
def serving(sources: Path) -> Iterator[Drawer]:
    """The server of a folder with sources; its worker too imports them from there."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name, "log")
        command = [sys.executable, "-P", "-m", "fluxserve", "serve", "demo", "--port", "0", "--output-dir", name]
        with log.open("wb") as output:
            environment = {**os.environ, "PYTHONPATH": str(sources)}
            process = subprocess.Popen(command, env=environment, stderr=output, cwd=name)
        try:
            yield _ready(process, log)
        finally:
            process.terminate()
            process.wait(60)


def _ready(process: subprocess.Popen[bytes], log: Path) -> Drawer:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        listening = _LISTENING.search(log.read_text())
        if listening and (drawer := Drawer(listening[1])).ready():
            return drawer
        time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


@contextmanager
def neighbour(computes: bool) -> Iterator[None]:
    if not computes:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) as process:
        try:
            yield
        finally:
            process.kill()


def alternate(drawers: tuple[Drawer, Drawer], rounds: int, pictures: int) -> None:
    for number in range(rounds):
        for busy in (False, True):
            with neighbour(busy):
                for drawer in drawers:
                    drawer.draw(number)
                    drawer.seconds[busy] += [drawer.draw(seed) for seed in range(pictures)]


def products(rounds: int) -> float:
    """A large product's time with threads that sleep, over the time with threads that spin."""

    def seconds(**variables: str) -> float:
        command = [sys.executable, "-c", PRODUCTS]
        return float(subprocess.run(command, env=os.environ | variables, capture_output=True, check=True).stdout)

    pairs = [(seconds(OMP_WAIT_POLICY="PASSIVE"), seconds()) for _ in range(rounds)]
    return statistics.median(asleep / spinning for asleep, spinning in pairs)


def goals(ours: Drawer, other: Drawer, product: float) -> list[Goal]:
    quiet, busy = (statistics.median(ours.seconds[state]) for state in (False, True))
    before = statistics.median(other.seconds[False])
    return [
        at_most("busy", "beside a neighbour, over quiet", busy / quiet, BUSY_MOST, "x"),
        at_most("quiet", "quiet, over the other commit's", quiet / before, QUIET_MOST, "x"),
        at_most("product", "large products with threads that sleep, over spinning ones", product, PRODUCT_MOST, "x"),
    ]


def show(ours: Drawer, other: Drawer, reached: list[Goal]) -> None:
    times = Table("", "quiet, ms", "busy, ms", "busy / quiet", title="medians of pictures")
    for name, drawer in (("this", ours), ("other", other)):
        quiet, busy = (statistics.median(drawer.seconds[state]) * 1000 for state in (False, True))
        times.add_row(name, f"{quiet:.0f}", f"{busy:.0f}", f"{busy / quiet:.2f}")
    table = Table("goal", "what", "wanted", "figure", "")
    for goal in reached:
        table.add_row(goal.number, goal.what, goal.wanted, goal.figure, goal.verdict)
    for each in (times, table):
        Console().print(each)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_neighbour", description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="a worktree of the commit to compare with")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=10, help="of each server in each round, quiet and busy")
    arguments = parser.parse_args()
    with serving(ROOT) as ours, serving(arguments.other.resolve()) as other:
        alternate((ours, other), arguments.rounds, arguments.pictures)
    reached = goals(ours, other, products(arguments.rounds))
    show(ours, other, reached)
    return 0 if all(goal.passed for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())

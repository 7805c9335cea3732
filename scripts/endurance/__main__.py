"""`scripts/soak`: runs the parts that are asked for, prints goal, figure and verdict, and keeps the figures."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scripts.endurance.adversary import adversary
from scripts.endurance.cluster import cluster
from scripts.endurance.confined import confined
from scripts.endurance.faults import faults
from scripts.endurance.flood import flood
from scripts.endurance.goals import Goal, Part, Scale, none_of
from scripts.endurance.kills import kills
from scripts.endurance.leaving import leaving
from scripts.endurance.load import memory, overload
from scripts.endurance.models import models
from scripts.endurance.sockets import sockets
from scripts.endurance.uploads import uploads
from scripts.endurance.weights import weights
from scripts.reliability_page import FIGURES

HELD = ("R1", "R2", "R8")
PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (
        flood,
        kills,
        models,
        leaving,
        memory,
        overload,
        sockets,
        weights,
        uploads,
        faults,
        confined,
        adversary,
        cluster,
    )
}
ALONE = ("cluster",)
"""Parts that have to be named: Ray Serve takes minutes, and 2.5 GB."""


def main(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"{', '.join(PARTS)}; all but {', '.join(ALONE)}, if none is named.")
    ] = None,
    scale: Annotated[float, typer.Option(min=0.001, max=10, help="How much of each loop to run.")] = 1.0,
    minutes: Annotated[float, typer.Option(min=0, help="Repeat the parts for so long; the worst figures count.")] = 0.0,
    record: Annotated[bool, typer.Option(help="Keep the figures in docs/reliability.json.")] = False,
) -> None:
    """Measures the goals of docs/reliability.md against a server on this machine, with the fake pipeline."""
    names = parts or [name for name in PARTS if name not in ALONE]
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"no such part: {', '.join(unknown)}")
    goals = repeated(names, Scale(scale), minutes) if minutes else run(names, Scale(scale))
    show(goals)
    if record:
        keep(goals)
    raise typer.Exit(0 if all(goal.passed for goal in goals) else 1)


def repeated(names: list[str], scale: Scale, minutes: float) -> list[Goal]:
    """Rounds of these parts for so long; of each goal the worst figure, and R22 if what must hold was among them."""
    end, rounds = time.monotonic() + minutes * 60, 1
    goals = run(names, scale)
    while time.monotonic() < end:
        goals, rounds = worse(goals, run(names, scale)), rounds + 1
    held = [goal for goal in goals if goal.number in HELD]
    if {goal.number for goal in held} != set(HELD):
        return goals
    what = f"{', '.join(HELD)} again and again for {minutes:g} minutes, {rounds} rounds: figures missed"
    row = none_of("R22", what, [goal.what for goal in held if not goal.passed], len(held))
    return [*goals, replace(row, load=max(goal.load for goal in held))]


def run(names: list[str], scale: Scale) -> list[Goal]:
    """One round of these parts."""
    goals = []
    for name in names:
        began, load = time.monotonic(), os.getloadavg()[0]
        goals += [replace(goal, load=round(load, 1)) for goal in asyncio.run(PARTS[name](scale))]
        Console(stderr=True).print(f"{name}: {time.monotonic() - began:.0f} s")
    return goals


def worse(before: list[Goal], now: list[Goal]) -> list[Goal]:
    """Of two rounds, for each goal the one that was missed; the later, if both are alike."""
    return [old if new.passed and not old.passed else new for old, new in zip(before, now, strict=True)]


def show(goals: list[Goal]) -> None:
    """The one table."""
    table = Table("goal", "what", "wanted", "figure", "load", "")
    for goal in goals:
        table.add_row(goal.number, goal.what, goal.wanted, goal.figure, str(goal.load), goal.verdict)
    Console().print(table)


def keep(goals: list[Goal]) -> None:
    """Puts these goals in the place of their last figures."""
    rows = json.loads(FIGURES.read_text())["rows"] if FIGURES.exists() else []
    measured = {goal.number for goal in goals}
    rows = [row for row in rows if row["goal"] not in measured]
    for goal in goals:
        row = asdict(goal)
        rows.append({"goal": row.pop("number"), **row, "verdict": goal.verdict})
    rows.sort(key=lambda row: int(row["goal"][1:]))
    machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, the fake pipeline"
    FIGURES.write_text(
        json.dumps({"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine, "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    typer.run(main)

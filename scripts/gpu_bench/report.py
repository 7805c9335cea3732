"""Figures by part, written to a JSON file as soon as they are there, so that a run that is cut off has lost little."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Report:
    """One JSON file, and the time that the part under way has left. device: what the figures were measured on."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        self.figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._path = path
        self._part: dict[str, Any] = {}
        self._ends = time.monotonic()

    def begin(self, part: str, box_s: float) -> None:
        """What is measured from now on belongs to `part`, and is begun within `box_s` seconds or not at all."""
        self._part = self.figures[part] = {}
        self._ends = time.monotonic() + box_s

    def measure(self, name: str, action: Callable[[], Any]) -> None:
        """One measurement; one that fails is told of, and the others go on."""
        started = time.monotonic()
        if started > self._ends:
            self._part[name] = "skipped: the part's time is over"
        else:
            try:
                self._part[name] = action()
            except Exception as error:  # each stands by itself, whatever goes wrong in it
                traceback.print_exc()
                self._part[name] = f"failed: {type(error).__name__}: {error}"[:300]
        self._free()
        self._path.write_text(json.dumps(self.figures, indent=1))
        print(f"{time.monotonic() - started:6.1f} s  {name}: {self._part[name]}", flush=True)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def failed(self) -> bool:
        """Whether a measurement did not end as it should, or a check found a difference."""
        return any(isinstance(f, str) and f.startswith("failed") for part in self._parts() for f in part.values())

    def _parts(self) -> list[dict[str, Any]]:
        return [part for part in self.figures.values() if isinstance(part, dict)]

    def table(self) -> str:
        """All figures, a measurement a line."""
        lines = []
        for part, figures in self.figures.items():
            lines.append(f"{part}: {figures}" if not isinstance(figures, dict) else f"{part}:")
            for name, figure in figures.items() if isinstance(figures, dict) else ():
                told = figure if not isinstance(figure, dict) else _one_line(figure)
                lines.append(f"  {name:28} {told}")
        return "\n".join(lines)


def _one_line(figure: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in figure.items() if not isinstance(value, (dict, list)))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, action: Callable[[], object], repeats: int = 5, warm_ups: int = 2) -> float:
    """Median of some runs, after those that do not count."""
    for _ in range(warm_ups):
        action()
    runs = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        action()
        synchronise(device)
        runs.append(time.perf_counter() - started)
    return round(statistics.median(runs), 5)

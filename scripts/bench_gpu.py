"""FLUX.1 [schnell] and FLUX.2 [klein] of random weights on one GPU: whether it draws what it should, and how fast.

    python scripts/bench_gpu.py                     all parts, in under eight minutes
    python scripts/bench_gpu.py --part parity       one of them

Needs torch, transformers, safetensors, numpy and Pillow alone, and no network; with diffusers installed its step is
timed beside ours. A part begins nothing more when its time is over, and what it has measured is written to `--out` at
once; figures of other parts that are there stay. The table comes last. Exits with 1 if anything failed. On a CPU, where
nothing but the bench itself is tried, nothing is cut short.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_bench.parts import Parts
from gpu_bench.report import Report

TIME_BOXES_S = {"parity": 75, "resident": 75, "offload": 120, "klein": 70, "eightbit": 70, "compile": 70}
GOALS = """G1 resident picture at most 0.70 s, its step at most diffusers' one
G2 picture within 4 GiB at most 2.0 s
G3 a larger budget is never slower by more than 3 %; 16 GiB at most 1.15 times resident
G4 resident transformer at most 18.5 GB
G5 two samples in one pass within 4 GiB at most 1.30 times one
G6 at most 10 ms without work between two pictures"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=TIME_BOXES_S, help="may be given again; default: all")
    parser.add_argument("--size", choices=("tiny", "slim", "full"), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=1024, help="pixels a side")
    parser.add_argument("--out", type=Path, default=Path("bench_gpu"), help="a folder for the JSON and scratch files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    report = Report(arguments.out / "bench_gpu.json", device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report.figures["machine"] = f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    parts = Parts(report, arguments.size, arguments.side, arguments.out)
    for part in arguments.part or TIME_BOXES_S:
        report.begin(part, TIME_BOXES_S[part] if device.type == "cuda" else math.inf)
        getattr(parts, part)()
    print(report.table())
    print(GOALS)
    sys.exit(report.failed)


if __name__ == "__main__":
    main()

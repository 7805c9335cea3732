"""What the server adds: HTTP wall time less denoising and decoding, and how the event loop answers under load.

A pipeline without a model runs in the real worker, over the real pipe and the real codecs, at 1024 x 1024. Goals: at
most 100 ms (PNG as base64) and 15 ms (JPEG as base64) in the median; /livez with 8 clients within 10 ms or three times
idle's 99th percentile. Ends with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.natural_worker import natural_pixels
from tests.server.running import Server, start

WORKER = "tests.natural_worker"
SIZE = 1024
GOALS_MS = {"png": 100.0, "jpeg": 15.0}
LIVEZ_GOAL_MS = 10.0
CLIENTS = 8
PROBE_S = 0.02


def overhead(server: Server, output_format: str, repeats: int) -> dict[str, float]:
    """Milliseconds of whole requests less their denoising and decoding."""
    walls = []
    for i in range(repeats + 2):
        fields = {"size": f"{SIZE}x{SIZE}", "seed": i, "output_format": output_format, "response_format": "b64_json"}
        started = time.perf_counter()
        response = server.generate(**fields)
        wall = (time.perf_counter() - started) * 1000
        timings = response.raise_for_status().json()["timings"]
        walls.append(wall - timings["denoise_ms"] - timings["decode_ms"])
    counted = sorted(walls[2:])
    return {"p50": round(statistics.median(counted), 2), "min": round(counted[0], 2), "max": round(counted[-1], 2)}


def livez(server: Server, seconds: float) -> float:
    """99th percentile of /livez in milliseconds, asked every 20 ms."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.perf_counter()
        server.get("/livez").raise_for_status()
        times.append((time.perf_counter() - started) * 1000)
        time.sleep(PROBE_S)
    return round(statistics.quantiles(times, n=100)[98], 2)


def event_loop(server: Server, seconds: float) -> dict[str, float]:
    """/livez idle, then with eight clients that each draw one picture after the other."""
    idle = livez(server, seconds)
    over = threading.Event()

    def client(seed: int) -> None:
        while not over.is_set():
            server.generate(size=f"{SIZE}x{SIZE}", seed=seed, response_format="b64_json")

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    loaded = livez(server, seconds)
    over.set()
    for thread in threads:
        thread.join()
    return {"idle_p99": idle, "loaded_p99": loaded, "goal": max(LIVEZ_GOAL_MS, 3 * idle)}


def png_encoding(repeats: int) -> dict[str, Any]:
    """fluxserve's PNG beside Pillow's default on both pictures: times of alternating runs, and sizes."""
    figures = {}
    for kind, name in enumerate(("smooth", "detailed")):
        picture = Image.fromarray(natural_pixels(kind, SIZE, SIZE))
        pairs = [(_encode(picture), _encode(picture, compress_type=3)) for _ in range(repeats)]
        default, ours = zip(*pairs, strict=True)
        figures[name] = {
            "pillow_default_ms": round(statistics.median(ms for ms, _ in default), 1),
            "fluxserve_ms": round(statistics.median(ms for ms, _ in ours), 1),
            "times_faster": round(statistics.median(d / o for (d, _), (o, _) in pairs), 2),
            "size_ratio": round(ours[0][1] / default[0][1], 4),
        }
    return figures


def _encode(picture: Image.Image, **options: int) -> tuple[float, int]:
    """Milliseconds and bytes."""
    buffer = io.BytesIO()
    started = time.perf_counter()
    picture.save(buffer, "PNG", **options)
    return (time.perf_counter() - started) * 1000, len(buffer.getvalue())


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5, help="of each /livez measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start([], Path(folder), WORKER).wait_ready()
        try:
            report = {
                "load": os.getloadavg()[0],
                "overhead_ms": {name: overhead(server, name, arguments.repeats) for name in GOALS_MS},
                "livez_ms": event_loop(server, arguments.seconds),
                "png": png_encoding(9),
            }
        finally:
            server.stop()
    print(json.dumps(report, indent=1))
    missed = [name for name, goal in GOALS_MS.items() if report["overhead_ms"][name]["p50"] > goal]
    missed += ["livez"] if report["livez_ms"]["loaded_p99"] > report["livez_ms"]["goal"] else []
    print(f"goals missed: {', '.join(missed) or 'none'}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

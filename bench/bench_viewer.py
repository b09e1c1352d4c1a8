"""``hoi-distill view`` over 50,000 made-up images in real Chromium: first paint, a filter, one image, the server's memory.

The server is a process of its own, started as a user starts it. Chromium opens the address that it prints. A paint is the
browser's own first contentful paint after the navigation began. Beside it stands the server's CPU time, which a busy machine
does not stretch. Images are drawn at 96 x 72 pixels, so decoding a photograph comes on top for those in sight.

    python -m bench.bench_viewer [--json] [--images N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.viewer_world import default_plot, write_world
from tests.fixtures.chromium import Chromium

ROOT = Path(__file__).parents[1]
A, B = "viewed/000000000000", "viewed/000000000001"
PAINT = "(performance.getEntriesByName('first-contentful-paint')[0] || {}).startTime"
SERVED = "(t => t.responseEnd - t.startTime)(performance.getEntriesByType('navigation')[0])"
FILTERS = {
    "interaction": "?interaction=ride+bicycle",
    "verb, in the test split": "?split=test&verb=hold",
    "text in captions": "?text=holding+a+kite",
    "failed cells": "?cells=captions+failed",
    "an error kind": f"?run={A}&kind=wrong+verb",
    "two students": f"?run={A}&against={B}&sort=students&down=1",
    "sorted by one score": "?sort=score&interaction=ride+bicycle&down=1",
    "sorted by contradiction": "?sort=contradiction",
}


def resident(process: int) -> dict[str, int]:
    """Bytes of a process in memory, and those of them that no file backs."""
    status = Path(f"/proc/{process}/status").read_text()
    found = {name: int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 for name in ("VmRSS", "RssAnon", "VmHWM")}  # type: ignore[index]
    return {"resident_bytes": found["VmRSS"], "anonymous_bytes": found["RssAnon"], "peak_bytes": found["VmHWM"]}


def busy(process: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def painted(browser: Chromium, address: str, process: int) -> dict[str, float]:
    """Milliseconds until the first paint of an address, until its HTML was there, and of the server's CPU, images included."""
    before = busy(process)
    browser.visit(address, 1400)
    for _ in range(100):
        if (paint := browser.run(PAINT)) is not None:
            break
        time.sleep(0.02)
    served, taken = browser.run(SERVED), busy(process) - before
    return {"paint_ms": round(paint or 0), "served_ms": round(served), "server_cpu_ms": round(1000 * taken)}


def measure(path: Path) -> dict[str, Any]:
    """Start the viewer on a configuration and open its pages; each filter is asked twice, the first time cold."""
    command = [sys.executable, "-m", "hoi_distill", "view", str(path), "--port", "0"]
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server,
        Chromium() as browser,
    ):
        assert server.stdout is not None
        address = re.search(r"http\S+", server.stdout.readline())[0]  # type: ignore[index]
        start = time.perf_counter() - began
        try:
            at_start = resident(server.pid)
            browser.visit(address, 1400)
            root = address.partition("?")[0]
            grid = [painted(browser, root, server.pid) for _ in range(3)]
            filters = {}
            for name, query in FILTERS.items():
                first = painted(browser, root + query, server.pid)
                # The same images by another address: the answer is not remembered, what was read is.
                filters[name] = {"first": first, "again": painted(browser, f"{root}{query}&scores=itm", server.pid)}
            images = browser.run("[...document.querySelectorAll('a.tile')].slice(0, 5).map(a => a.href)")
            one = [painted(browser, each, server.pid) for each in images]
            return {
                "start_seconds": round(start, 1),
                "grid": sorted(grid, key=lambda each: each["paint_ms"])[1],
                "filters": filters,
                "image": sorted(one, key=lambda each: each["paint_ms"])[len(one) // 2],
                "memory_at_start": at_start,
                "memory_at_end": resident(server.pid),
            }
        finally:
            server.terminate()
            server.wait(20)


def main() -> None:
    """Write the world where it is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="keeps the world for another time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        path = folder / "viewed.yaml"
        if not path.exists():
            write_world(folder, default_plot(options.images))
        result = {"images": options.images, **measure(path)}
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()

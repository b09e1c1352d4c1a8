"""Take the screenshots of docs/viewer.md again: ``.venv/bin/python -m docs.figures.viewer CONFIG RUN RUN [--looks]``.

It starts ``hoi-distill view`` on a configuration whose cache is filled, and opens its pages in Chromium at 1400 and 390 pixels.
The runs are two finished students of the configuration's dataset, such as ``pico/553a6ed2a3a4``. ``--looks`` takes only that of
a LINK student's attention.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from hoi_distill.stages.data.image import read_image
from tests.fixtures.chromium import Chromium

WIDTHS = {1400: 1000, 390: 844}
"""CSS pixels of a window's width, and of how much of the page's height is taken."""
SHOWN = {1400: 1000, 390: 390}
"""Pixels of the file's width."""
LOADED = "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode().catch(() => 0) }))"


def small(path: Path, width: int, target: Path) -> None:
    """A screenshot at a width of its own, in 224 colours: a few ten kB."""
    image = read_image(path, "upright")
    scaled = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    scaled.quantize(224).save(buffer, "PNG", optimize=True)
    target.write_bytes(buffer.getvalue())
    print(target, f"{len(buffer.getvalue()) / 1000:.0f} kB")


def views(browser: Chromium, root: str, first: str, second: str) -> dict[str, str]:
    """The pages of the viewer, by the screenshot's name."""
    browser.visit(f"{root}/?run={first}&against={second}&sort=students&down=1", 1400)
    compared = browser.run("document.querySelectorAll('a.tile')[3].href")
    return {
        "grid": f"{root}/?sort=contradiction",
        "image": compared.partition("?")[0],
        "comparison": compared,
        "classes": f"{root}/classes?run={first}&against={second}",
        "report": f"{root}/report/{first}/report.html",
        "behind": f"{root}/report/{first}/images.html#kind-wrong-verb",
    }


def looks(browser: Chromium, root: str, run: str) -> dict[str, str]:
    """The attention for the first pair that a student got wrong."""
    browser.visit(f"{root}/?run={run}&kind=wrong+verb", 1400)
    browser.visit(browser.run("document.querySelector('a.tile').href"), 1400)
    return {"looks": browser.run("document.querySelector('.look-link').href")}


def shot(browser: Chromium, path: Path, width: int, height: int) -> None:
    """The part of the page that its address names, or its beginning."""
    top = browser.run("document.querySelector(':target')?.getBoundingClientRect().top + scrollY || 0")
    clip = {"x": 0, "y": max(0, top - 20), "width": width, "height": height, "scale": 1}
    taken = browser.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(taken["data"]))


def main() -> None:
    """Take every screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("runs", nargs=2)
    parser.add_argument("--set", action="append", default=[], help="as for hoi-distill view")
    parser.add_argument("--looks", action="store_true", help="only the attention of the first run, a LINK student")
    options = parser.parse_args()
    first, second = map(quote, options.runs)
    command = [sys.executable, "-m", "hoi_distill", "view", str(options.config), "--port", "0"]
    command += [part for override in options.set for part in ("--set", override)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, Chromium() as browser:
        assert server.stdout is not None
        address = re.search(r"http\S+", server.stdout.readline())[0]  # type: ignore[index]
        root = address.partition("/?")[0]
        try:
            browser.visit(address, 1400)
            pages = looks(browser, root, first) if options.looks else views(browser, root, first, second)
            with tempfile.TemporaryDirectory() as folder:
                if not options.looks:
                    out = Path(folder) / "page.html"
                    command = [sys.executable, "-m", "hoi_distill", "page", str(options.config), "--limit", "100"]
                    subprocess.run([*command, "--out", str(out)], check=True)
                    pages["page"] = out.as_uri()
                for name, page in pages.items():
                    for width, height in WIDTHS.items():
                        browser.visit("about:blank", width, height)
                        browser.visit(page, width, height)
                        browser.run(LOADED)
                        shot(browser, Path(folder) / "shot.png", width, height)
                        small(
                            Path(folder) / "shot.png",
                            SHOWN[width],
                            Path(__file__).with_name(f"viewer_{name}_{width}.png"),
                        )
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()

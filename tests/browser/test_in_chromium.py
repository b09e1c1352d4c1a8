"""The pages as a browser shows them, at desktop and phone width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import EXECUTABLE, Chromium
from tests.browser.conftest import MARKUP

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the PATH (apt-get install chromium)"),
]
SIZES = [(kind, width) for kind in ("report", "folder", "experiments") for width in (1280, 390)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.mark.parametrize(("kind", "width"), SIZES)
def test_pages_load_silently_and_fit(kind: str, width: int, browser: Chromium, pages: dict[str, Path]):
    browser.open(pages[kind], width)
    assert browser.run("window.innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    assert browser.requests == [pages[kind].as_uri()]
    assert browser.run("document.querySelector('h1').getBoundingClientRect().height") > 20


@pytest.mark.parametrize("kind", ["report", "folder", "experiments"])
def test_markup_is_text_in_the_browser(kind: str, browser: Chromium, pages: dict[str, Path]):
    browser.open(pages[kind], 1280)
    assert browser.run("document.querySelectorAll('[onerror]').length") == 0
    assert MARKUP in browser.run("document.body.innerText")


def test_pictures_are_rendered(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["folder"], 390)
    sizes = browser.run("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert len(sizes) == 5
    assert min(sizes) > 0
    browser.open(pages["report"], 390)
    drawn = browser.run(
        "Promise.all([...document.querySelectorAll('svg.picture image')].map(i => {"
        "const p = new Image(); p.src = i.getAttribute('href');"
        "return p.decode().then(() => [p.naturalWidth, i.getBoundingClientRect().width]) }))"
    )
    assert len(drawn) == 12
    assert all(natural > 0 and 250 < shown <= 362 for natural, shown in drawn)


def test_words_on_pictures_are_legible_on_a_phone(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["report"], 390)
    heights = browser.run("[...document.querySelectorAll('.chip')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) >= 10
    overflowing = browser.run(
        "[...document.querySelectorAll('.chip')].filter(t => t.getBoundingClientRect().right"
        " > t.previousElementSibling.getBoundingClientRect().right).length"
    )
    assert overflowing == 0


def test_classes_are_sorted_on_a_click(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["report"], 1280)
    column = "[...document.querySelectorAll('.classes tbody tr')].map(r => r.cells[{}].dataset.value)"
    precision = [float(value) for value in browser.run(column.format(1))]
    assert precision == sorted(precision, reverse=True)
    for _ in range(2):
        browser.run("document.querySelectorAll('.classes th button')[4].click()")
    counts = [float(value) for value in browser.run(column.format(4))]
    assert counts == sorted(counts)
    browser.run("document.querySelectorAll('.classes th button')[0].click()")
    names = browser.run(column.format(0))
    assert names == sorted(names, reverse=True)
    assert browser.complaints == []
